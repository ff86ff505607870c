"""Z-Image: one stream of image and text tokens, told of prompts by Qwen3-4B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import Tensor, nn

from ...core.families import Config, zimage
from ..model.conditioning import Conditioning, Encoded
from ..model.family import TorchFamily

LENGTHS = (16384, 1024, 1024)
"""Tokens of text, and patches along a side, that positions are counted for; they are not learned.
ComfyUI has no limit."""


class ZImageTransformer(ZImageTransformer2DModel):
    """The transformer with positions for as long a prompt as anybody writes."""

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **more: Any
    ) -> Any:
        """The network of a configuration, whose own limits of length are raised."""
        made: Any = super().from_config(config, return_unused_kwargs, **more)
        made.rope_embedder.axes_lens = list(map(max, made.config["axes_lens"], LENGTHS))
        return made


def call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The velocity, (B, C, H, W): the transformer counts time from noise to image, and so back."""
    told = list(conditioning.context.to(dtype))
    if conditioning.lengths is not None:
        told = [row[:n] for row, n in zip(told, conditioning.lengths.tolist(), strict=True)]
    frames = list(x_t[:, :, None])
    found = network(frames, 1 - timesteps / 1000, told, return_dict=False)[0]
    return -torch.stack(found)[:, :, 0]


def combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    """Qwen3's tokens; the transformer fills them up with a token of its own."""
    return Conditioning(parts["qwen3"].tokens, repeatable=False, masked=True)


HALF = TorchFamily(facts=zimage.FAMILY, network=ZImageTransformer, call=call, combine=combine)
