"""The guided teacher and the fake score on the same noised latent in one pass of three rows.

The network acts as the teacher, and hooks add the fake's adapter to the last third of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dpdmd_studio.core.diffusion.schedule import Levels
from dpdmd_studio.trainer.model.conditioning import PromptPair
from dpdmd_studio.trainer.training.trainer import Trainer
from torch import Tensor


@torch.no_grad()
def two_passes(
    trainer: Trainer, prompts: PromptPair, x_t: Tensor, level: Levels
) -> tuple[Tensor, Tensor]:
    """The predictions of the guided teacher and the fake, (B, C, H, W), as the product has them."""
    network = trainer.network.bound(prompts, len(x_t), of=len(x_t))
    guidance = trainer.settings.objective().teacher_guidance
    return network("teacher", x_t, level, guidance), network("fake", x_t, level)


@torch.no_grad()
def one_pass(
    trainer: Trainer, prompts: PromptPair, x_t: Tensor, level: Levels
) -> tuple[Tensor, Tensor]:
    """The same from one call of the network."""
    trainer.roles.use("teacher")
    rows = [prompts.conditional, prompts.unconditional, prompts.conditional]
    count, timesteps = len(x_t), level.timesteps.expand(len(x_t))
    with last_rows_act_as("fake", trainer, count):
        output = trainer.network.call(
            torch.cat([x_t] * 3), torch.cat([timesteps] * 3), rows[0].cat(rows)
        )
    positive, negative, fake = output.chunk(3)
    guidance = trainer.settings.objective().teacher_guidance
    return guidance.combine(positive, negative), fake


@contextmanager
def last_rows_act_as(role: str, trainer: Trainer, count: int) -> Iterator[None]:
    """Inside, the last `count` rows of every adapted layer get the role's adapter."""

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0][-count:]
        low = torch.autocast(x.device.type, x.dtype, enabled=x.dtype != torch.float32)
        with low:  # the adapter is in float32
            delta = layer.lora_B[role](layer.lora_A[role](x))
        return torch.cat([output[:-count], output[-count:] + delta])

    hooks = [layer.register_forward_hook(add) for layer in trainer.roles._layers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
