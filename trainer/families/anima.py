"""Anima: Cosmos-Predict2's transformer on one frame, told of prompts by Qwen3 and an adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from ...core.families import Config, anima
from ..model.conditioning import Conditioning, Encoded
from ..model.family import TorchFamily

NORM_EPS = 1e-6
LONGEST = 2048
"""Latent pixels along a side that positions are counted for; they are not learned."""
TOKENS = 512
"""The transformer reads at least so many rows of text, of which it was never told which are empty:
without the empty ones its pictures turn black."""


class AnimaTransformer(CosmosTransformer3DModel):
    """The transformer as Anima has it.

    Positions along height and width are stretched fourfold. The norms of queries and keys have an
    epsilon of 1e-6, where diffusers' class has 1e-5. The mask of padded pixels is one of its input
    channels, so that the class, which would want torchvision to make it, makes none.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_attention_heads: int,
        attention_head_dim: int,
        num_layers: int,
        mlp_ratio: int,
        text_embed_dim: int,
        adaln_lora_dim: int,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            mlp_ratio=mlp_ratio,
            text_embed_dim=text_embed_dim,
            adaln_lora_dim=adaln_lora_dim,
            max_size=(1, LONGEST, LONGEST),
            rope_scale=(1.0, 4.0, 4.0),
            concat_padding_mask=False,
            extra_pos_embed_type=None,
        )
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.eps = NORM_EPS


def call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The transformer's output, (B, C, H, W), of one frame without padding."""
    frame = functional.pad(x_t[:, :, None], (0, 0, 0, 0, 0, 0, 0, 1))
    text, seen = conditioning.context.to(dtype), None
    if text.shape[1] < TOKENS:
        text = functional.pad(text, (0, 0, 0, TOKENS - text.shape[1]))
    elif text.shape[1] > TOKENS:  # a prompt that long lengthens those beside it in a batch
        row = torch.arange(text.shape[1], device=text.device)
        seen = row < conditioning.num_tokens().to(text.device).clamp(min=TOKENS)[:, None]
    return network(
        frame,
        timestep=timesteps / 1000,
        encoder_hidden_states=text,
        attention_mask=seen,
        return_dict=False,
    )[0][:, :, 0]


def combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    """What the adapter made of Qwen3's tokens; `call` fills it up with empty rows."""
    return Conditioning(parts["llm_adapter"].tokens, repeatable=False, masked=True)


HALF = TorchFamily(facts=anima.FAMILY, network=AnimaTransformer, call=call, combine=combine)
