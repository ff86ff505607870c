"""Z-Image: one stream of image and text tokens, told of prompts by Qwen3-4B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers.configuration_utils import register_to_config
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

    @register_to_config
    def __init__(
        self,
        dim: int,
        n_layers: int,
        n_heads: int,
        cap_feat_dim: int,
        axes_dims: Sequence[int],
        axes_lens: Sequence[int] = zimage.ROPE_LENGTHS,
        n_kv_heads: int | None = None,
        n_refiner_layers: int = 2,
        in_channels: int = 16,
        all_patch_size: Sequence[int] = (2,),
        all_f_patch_size: Sequence[int] = (1,),
        norm_eps: float = 1e-5,
        qk_norm: bool = True,
        siglip_feat_dim: int | None = None,
        rope_theta: float = 256.0,
        t_scale: float = 1000.0,
    ) -> None:
        super().__init__(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads or n_heads,
            n_refiner_layers=n_refiner_layers,
            cap_feat_dim=cap_feat_dim,
            in_channels=in_channels,
            axes_dims=list(axes_dims),
            axes_lens=list(axes_lens),
        )
        self.rope_embedder.axes_lens = list(map(max, axes_lens, LENGTHS))


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
