"""Classifier-free guidance (arXiv:2207.12598) of any prediction, with rescaling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MIN_CONTRAST = 1e-6


@dataclass(frozen=True)
class Guidance:
    """How strongly a prediction follows its prompt.

    Attributes:
        scale: weight of the prompt against the negative prompt; 1 is no guidance.
        rescale: share of the result that is brought to the conditional prediction's contrast
            (arXiv:2305.08891, Eq. 15 and 16), in [0, 1].
    """

    scale: float = 1.0
    rescale: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether the conditional prediction alone is the result."""
        return self.scale == 1.0

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """uncond + scale * (cond - uncond), rescaled; all of shape (B, C, H, W)."""
        result = unconditional + self.scale * (conditional - unconditional)
        if self.rescale:
            wanted = conditional.std(dim=(1, 2, 3), keepdim=True)
            found = result.std(dim=(1, 2, 3), keepdim=True).clamp_min(MIN_CONTRAST)
            result = result * (self.rescale * wanted / found + (1 - self.rescale))
        return result


NO_GUIDANCE = Guidance()
