"""Calling a denoiser: fp32 latents in, fp32 prediction out, the network in its own dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import Schedule
from ...core.families import Family
from ..device import to_device
from .conditioning import Conditioning, PromptPair
from .family import TorchFamily


class FP32GroupNorm(nn.GroupNorm):
    """Computed in float32, whose result is rounded once.

    In 16 bit PyTorch would round each group's mean and deviation as well, which shifts and scales
    all of the group. Its layer norm keeps them in float32 by itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input (B, C, ...), normalised, in its format."""
        scale, shift = (None if p is None else p.float() for p in (self.weight, self.bias))
        found = F.group_norm(input.float(), self.num_groups, scale, shift, self.eps)
        return found.to(input.dtype)


@dataclass(eq=False)
class NetworkCall:
    """A denoiser with everything a sampler or the trainer needs to know of it.

    There is no autocast: it would cast the adapters and what several layers read anew for each.

    Attributes:
        half: of its family; says how the network is called.
        prediction: what it predicts.
        schedule: the noise schedule that it was trained with.
        device: where it computes.
        dtype: of the frozen network, whatever its adapters have.
    """

    network: nn.Module
    half: TorchFamily
    prediction: str
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        for module in self.network.modules():
            if type(module) is nn.GroupNorm:
                module.__class__ = FP32GroupNorm

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
        return self.half.call(self.network, x_t.to(dtype), steps, told, dtype).float()


def guided(
    network: NetworkCall, x_t: Tensor, timesteps: Tensor, prompts: PromptPair, guidance: Guidance
) -> Tensor:
    """The raw guided prediction, shape (B, C, H, W); rows without guidance are evaluated once.

    Args:
        x_t: states, (B, C, H, W).
        timesteps: what the network is fed, (B,).
        prompts: of batch size B.
    """
    if guidance.is_off:
        return network(x_t, timesteps, prompts.conditional)
    if guidance.rows is None:
        return guidance.combine(*_both(network, (x_t, timesteps), (x_t, timesteps), prompts))
    rows = to_device(torch.tensor(guidance.rows), x_t.device)
    pair = PromptPair(prompts.conditional, prompts.unconditional.index(rows))
    some = (x_t[rows], timesteps[rows])
    conditional, unconditional = _both(network, (x_t, timesteps), some, pair)
    result = guidance.combine(conditional[rows], unconditional)
    return conditional.index_copy(0, rows, result)


Inputs = tuple[Tensor, Tensor]
"""States (B, C, H, W) and the timesteps of each (B,)."""


def _both(
    network: NetworkCall, conditional: Inputs, unconditional: Inputs, prompts: PromptPair
) -> tuple[Tensor, Tensor]:
    """Both predictions in one call; in two where joint attention would see foreign padding."""
    positive, negative = prompts.conditional, prompts.unconditional
    if not positive.batches_exactly_with(negative):
        return network(*conditional, positive), network(*unconditional, negative)
    both = positive.cat([positive, negative])
    x_t = torch.cat([conditional[0], unconditional[0]])
    output = network(x_t, torch.cat([conditional[1], unconditional[1]]), both)
    count = len(conditional[0])
    return output[:count], output[count:]


def frozen_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a frozen network, whatever its adapters have: that of its first parameter.

    A first layer never gets LoRA, nor is it packed.
    """
    return next(value.dtype for value in network.parameters() if value.is_floating_point())
