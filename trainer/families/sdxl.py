"""SDXL: a UNet that reads two CLIPs side by side, a pooled vector, and the image's size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ...core.families import Config, sdxl
from ..model.conditioning import PIXELS_PER_LATENT, Conditioning, Encoded
from ..model.family import TorchFamily, side_by_side


def call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The UNet's output, (B, C, H, W)."""
    sized = conditioning
    if conditioning.time_ids is None:
        height, width = (size * PIXELS_PER_LATENT for size in x_t.shape[-2:])
        sized = conditioning.with_size(height, width)
    assert sized.pooled is not None
    added = {"text_embeds": sized.pooled.to(dtype), "time_ids": sized.time_ids}
    return network(
        x_t,
        timestep=timesteps,
        encoder_hidden_states=conditioning.context.to(dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    """Tokens of CLIP-L and CLIP-G side by side, and CLIP-G's pooled vector."""
    tokens = side_by_side([parts["clip_l"].tokens, parts["clip_g"].tokens])
    return Conditioning(tokens, parts["clip_g"].pooled)


HALF = TorchFamily(facts=sdxl.FAMILY, network=UNet2DConditionModel, call=call, combine=combine)
