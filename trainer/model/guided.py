"""Classifier-free guidance in one batched network call."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...core.diffusion.guidance import Guidance
from .conditioning import Conditioning, PromptPair


class Predict(Protocol):
    """A denoiser's raw prediction in float32."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Prediction for x_t (B, C, H, W) at timesteps (B,)."""
        ...


def guided(
    network: Predict, x_t: Tensor, timesteps: Tensor, prompts: PromptPair, guidance: Guidance
) -> Tensor:
    """The raw guided prediction, shape (B, C, H, W); without guidance one evaluation a sample.

    Args:
        x_t: states, (B, C, H, W).
        timesteps: what the network is fed, (B,).
        prompts: of batch size B.
    """
    if guidance.is_off:
        return network(x_t, timesteps, prompts.conditional)
    return guidance.combine(*_both(network, x_t, timesteps, prompts))


def _both(
    network: Predict, x_t: Tensor, timesteps: Tensor, prompts: PromptPair
) -> tuple[Tensor, Tensor]:
    """Both predictions in one call; in two where joint attention would see foreign padding."""
    positive, negative = prompts.conditional, prompts.unconditional
    if not positive.batches_exactly_with(negative):
        return network(x_t, timesteps, positive), network(x_t, timesteps, negative)
    both = positive.cat([positive, negative])
    output = network(torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), both)
    conditional, unconditional = output.chunk(2)
    return conditional, unconditional
