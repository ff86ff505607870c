"""Classifier-free guidance in one batched network call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..model.conditioning import Conditioning

MIN_CONTRAST = 1e-6


class Predict(Protocol):
    """A denoiser's raw prediction in float32."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Prediction for x_t (B, C, H, W) at timesteps (B,)."""
        ...


def guided(
    network: Predict,
    x_t: Tensor,
    timesteps: Tensor,
    conditional: Conditioning,
    unconditional: Conditioning,
    *,
    scale: float,
    rescale: float = 0.0,
) -> Tensor:
    """uncond + scale * (cond - uncond), the raw guided prediction, shape (B, C, H, W).

    scale 1 is no guidance and costs one evaluation a sample instead of two. `rescale` mixes in the
    prediction scaled to the conditional's contrast (arXiv:2305.08891, Eq. 15 and 16).

    Args:
        x_t: states, (B, C, H, W).
        timesteps: what the network is fed, (B,).
        conditional, unconditional: prompts of batch size B.
    """
    if scale == 1.0:
        return network(x_t, timesteps, conditional)
    positive, negative = _both(network, x_t, timesteps, conditional, unconditional)
    result = negative + scale * (positive - negative)
    if rescale:
        wanted = positive.std(dim=(1, 2, 3), keepdim=True)
        found = result.std(dim=(1, 2, 3), keepdim=True).clamp_min(MIN_CONTRAST)
        result = result * (rescale * wanted / found + (1 - rescale))
    return result


def _both(
    network: Predict,
    x_t: Tensor,
    timesteps: Tensor,
    conditional: Conditioning,
    unconditional: Conditioning,
) -> tuple[Tensor, Tensor]:
    """Both predictions in one call; in two where joint attention would see foreign padding."""
    if not conditional.batches_exactly_with(unconditional):
        return network(x_t, timesteps, conditional), network(x_t, timesteps, unconditional)
    both = conditional.cat([conditional, unconditional])
    output = network(torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), both)
    positive, negative = output.chunk(2)
    return positive, negative
