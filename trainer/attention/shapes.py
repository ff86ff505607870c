"""Which attention a denoiser computes: tokens, heads and head width of each of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn


@dataclass(frozen=True, order=True)
class AttentionShape:
    """One attention call of a layer, with gradients.

    Attributes:
        batch: pictures.
        heads, width: number of heads and numbers in each.
        tokens: queries; a joint layer's are those of picture and text together.
        keys: keys and values.
        joint: whether the layer takes picture and text in one (SD3).
    """

    batch: int
    heads: int
    width: int
    tokens: int
    keys: int
    joint: bool = False

    def __str__(self) -> str:
        kind = " joint" if self.joint else ""
        return f"{self.batch}x{self.heads}x{self.tokens}x{self.keys}x{self.width}{kind}"


def attention_shapes(
    network: nn.Module, latent: tuple[int, int, int], pictures: int, text_tokens: int
) -> dict[str, AttentionShape]:
    """The shape of every attention layer by its name; one forward without numbers finds them.

    Args:
        network: a UNet2DConditionModel or SD3Transformer2DModel; only its settings are read.
        latent: (C, h, w) of one picture.
        pictures: that go through the network at once.
        text_tokens: of an encoded prompt.
    """
    layout: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = type(network).from_config(network.config)  # type: ignore[attr-defined]
    found: dict[str, AttentionShape] = {}
    for name, layer in empty.named_modules():
        if isinstance(layer, Attention):
            layer.register_forward_pre_hook(_recorder(found, name), with_kwargs=True)
    with torch.device("meta"), torch.no_grad():
        empty(torch.empty(pictures, *latent), **_inputs(layout, pictures, text_tokens))
    return found


def _recorder(found: dict[str, AttentionShape], name: str):
    """A hook that notes what a layer was called with."""

    def record(layer: Attention, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        text = arguments[1] if len(arguments) > 1 else named.get("encoder_hidden_states")
        batch, tokens = hidden.shape[:2]
        keys = tokens if text is None else text.shape[1]
        joint = layer.added_kv_proj_dim is not None
        if joint and text is not None:
            tokens = keys = tokens + keys
        width = layer.inner_dim // layer.heads
        found[name] = AttentionShape(batch, layer.heads, width, tokens, keys, joint)

    return record


def _inputs(layout: dict[str, Any], pictures: int, text_tokens: int) -> dict[str, Any]:
    """What a forward needs besides the latent, by the network's settings."""
    width = layout.get("joint_attention_dim") or layout["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "timestep": torch.empty(pictures),
        "encoder_hidden_states": torch.empty(pictures, text_tokens, width),
    }
    if layout.get("pooled_projection_dim"):
        inputs["pooled_projections"] = torch.empty(pictures, layout["pooled_projection_dim"])
    elif layout.get("addition_embed_type") == "text_time":
        sizes = 6 * layout["addition_time_embed_dim"]
        pooled = layout["projection_class_embeddings_input_dim"] - sizes
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(pictures, pooled),
            "time_ids": torch.empty(pictures, 6),
        }
    return inputs
