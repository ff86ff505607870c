"""Calling a denoiser: fp32 latents in, fp32 prediction out, the network in its own dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...core.diffusion.schedule import Schedule
from ...core.families import Family
from .conditioning import Conditioning


class NetworkHalf(Protocol):
    """What is needed here of a family's torch half (trainer/families)."""

    @property
    def facts(self) -> Family:
        """The family's facts."""
        ...

    @property
    def call(
        self,
    ) -> Callable[[nn.Module, Tensor, Tensor, Conditioning, torch.dtype], Tensor]:
        """The one call of its network."""
        ...


@dataclass(eq=False)
class NetworkCall:
    """A denoiser with everything a sampler or the trainer needs to know of it.

    Attributes:
        half: of its family; says how the network is called.
        prediction: what it predicts.
        schedule: the noise schedule that it was trained with.
        device: where it computes.
        dtype: of the frozen network, whatever its adapters have.
    """

    network: nn.Module
    half: NetworkHalf
    prediction: str
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype

    @property
    def family(self) -> Family:
        """Facts of its family."""
        return self.half.facts

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw prediction, fp32, (B, C, H, W).

        Args:
            x_t: noised latents in the network's own space, shape (B, C, H, W).
            timesteps: 0..999 (VP) or 1000 * sigma (flow), fp32, shape (B,) or ().
            conditioning: of the same batch size.
        """
        dtype, steps = self.dtype, timesteps.to(x_t.device).expand(len(x_t))
        told = conditioning.to(x_t.device)
        # Adapters are kept in fp32; under autocast their products run in the network's dtype, too.
        # Each is used once a call: a cache of their casts would only hold memory.
        low = dtype != torch.float32
        with torch.autocast(x_t.device.type, dtype, enabled=low, cache_enabled=False):
            return self.half.call(self.network, x_t.to(dtype), steps, told, dtype).float()


def frozen_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a frozen network, whatever its adapters have: that of its first parameter.

    A first layer never gets LoRA, nor is it packed.
    """
    return next(value.dtype for value in network.parameters() if value.is_floating_point())
