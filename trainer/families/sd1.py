"""SD 1.x: a UNet that reads CLIP-L's tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ...core.families import Config, sd1
from ..model.conditioning import Conditioning, Encoded
from ..model.family import TorchFamily


def call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The UNet's output, (B, C, H, W)."""
    context = conditioning.context.to(dtype)
    return network(x_t, timestep=timesteps, encoder_hidden_states=context, return_dict=False)[0]


def combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    """CLIP-L's tokens."""
    return Conditioning(parts["clip_l"].tokens)


HALF = TorchFamily(facts=sd1.FAMILY, network=UNet2DConditionModel, call=call, combine=combine)
