"""SD3 and SD3.5: an MMDiT that reads two CLIPs side by side, then T5; each is optional."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from ...core.families import Config, sd3
from ..model.conditioning import Conditioning, Encoded
from ..model.family import TorchFamily, side_by_side, widen, width_of


def call(
    network: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> Tensor:
    """The transformer's output, (B, C, H, W)."""
    assert conditioning.pooled is not None
    return network(
        x_t,
        timestep=timesteps,
        encoder_hidden_states=conditioning.context.to(dtype),
        pooled_projections=conditioning.pooled.to(dtype),
        return_dict=False,
    )[0]


def combine(config: Config, parts: Mapping[str, Encoded]) -> Conditioning:
    """CLIP-L's and CLIP-G's tokens side by side, padded with zeros to the width, then T5's.

    An absent CLIP leaves zeros in its place, an absent T5 no tokens, as in ComfyUI.
    """
    width = width_of(config, sd3.FAMILY.text.context_width)
    pooled_width = width_of(config, sd3.FAMILY.text.pooled_width)
    clip = [parts[kind] for kind in ("clip_l", "clip_g") if kind in parts]
    rows = []
    pooled = torch.zeros(1, pooled_width)
    if clip:
        tokens = side_by_side([part.tokens for part in clip])
        vector = torch.cat([part.pooled for part in clip if part.pooled is not None], dim=-1)
        missing = pooled_width - vector.shape[-1] if "clip_l" not in parts else 0
        # CLIP-G keeps its place behind CLIP-L
        tokens = torch.nn.functional.pad(tokens, (missing, 0))
        pooled = widen(torch.nn.functional.pad(vector, (missing, 0)), pooled_width)
        rows.append(widen(tokens, width))
    if "t5xxl" in parts:
        rows.append(parts["t5xxl"].tokens)
    dtype = rows[0].dtype
    return Conditioning(
        torch.cat([row.to(dtype) for row in rows], dim=1), pooled.to(dtype), repeatable=False
    )


HALF = TorchFamily(facts=sd3.FAMILY, network=SD3Transformer2DModel, call=call, combine=combine)
