"""Classifier-free guidance (arXiv:2207.12598) of any prediction, with rescaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

MIN_CONTRAST = 1e-6


@dataclass(frozen=True)
class Guidance:
    """How strongly a prediction follows its prompt.

    Attributes:
        scale: weight of the prompt against the negative prompt; 1 is no guidance.
        rescale: share of the result that is brought to the conditional prediction's contrast
            (arXiv:2305.08891, Eq. 15 and 16), in [0, 1].
        rows: rows of a batch that are guided, in order; of the others the conditional prediction
            is the result. None: all are.
    """

    scale: float = 1.0
    rescale: float = 0.0
    rows: tuple[int, ...] | None = None

    @property
    def is_off(self) -> bool:
        """Whether the conditional prediction alone is the result."""
        return self.scale == 1.0 or self.rows == ()

    def where(self, inside: Sequence[bool]) -> Guidance:
        """The same for those rows of a batch alone of which `inside` is true."""
        if all(inside):
            return self
        return replace(self, rows=tuple(row for row, guided in enumerate(inside) if guided))

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """uncond + scale * (cond - uncond), rescaled; all of shape (B, C, H, W)."""
        result = unconditional + self.scale * (conditional - unconditional)
        if self.rescale:
            wanted = conditional.std(dim=(1, 2, 3), keepdim=True)
            found = result.std(dim=(1, 2, 3), keepdim=True).clamp_min(MIN_CONTRAST)
            result = result * (self.rescale * wanted / found + (1 - self.rescale))
        return result


NO_GUIDANCE = Guidance()
