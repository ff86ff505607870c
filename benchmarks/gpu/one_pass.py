"""The guided teacher and the fake score on the same noised latent in one pass of three rows.

The network acts as the teacher, and hooks add the fake's adapter to the last third of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dpdmd_studio.core.diffusion.prediction import to_x0
from dpdmd_studio.core.diffusion.schedule import Levels
from dpdmd_studio.trainer.method.distiller import Batch
from dpdmd_studio.trainer.training.loop import Trainer
from torch import Tensor


@torch.no_grad()
def two_passes(trainer: Trainer, batch: Batch, x_t: Tensor, level: Levels) -> tuple[Tensor, Tensor]:
    """(x0_real, x0_fake), each (B, C, H, W), as the product computes them."""
    denoise = trainer.distiller.denoise_as
    return denoise("teacher", batch, x_t, level), denoise("fake", batch, x_t, level)


@torch.no_grad()
def one_pass(trainer: Trainer, batch: Batch, x_t: Tensor, level: Levels) -> tuple[Tensor, Tensor]:
    """The same from one call of the network."""
    distiller = trainer.distiller
    trainer.roles.use("teacher")
    prompts = [batch.conditional, batch.unconditional, batch.conditional]
    count, timesteps = len(x_t), level.timesteps.expand(len(x_t))
    with last_rows_act_as("fake", trainer, count):
        output = distiller.network(
            torch.cat([x_t] * 3), torch.cat([timesteps] * 3), prompts[0].cat(prompts)
        )
    positive, negative, fake = output.chunk(3)
    real = negative + distiller.teacher_guidance * (positive - negative)
    alpha, std = level.broadcast_scales
    prediction = distiller.network.prediction
    return to_x0(prediction, real, x_t, alpha, std), to_x0(prediction, fake, x_t, alpha, std)


@contextmanager
def last_rows_act_as(role: str, trainer: Trainer, count: int) -> Iterator[None]:
    """Inside, the last `count` rows of every adapted layer get the role's adapter."""

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        delta = layer.lora_B[role](layer.lora_A[role](inputs[0][-count:]))
        return torch.cat([output[:-count], output[-count:] + delta])

    hooks = [layer.register_forward_hook(add) for layer in trainer.roles._layers.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
