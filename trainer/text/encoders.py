"""Prompts through the text encoders, put together as each family's denoiser expects them.

Weights are honoured as A1111 does: every token's output is multiplied by its weight and the whole
is scaled back to its former mean. (ComfyUI blends with the empty prompt's output instead;
unweighted prompts are the same in both.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ...core.errors import SettingsError
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.encoders import EOS
from ..model.conditioning import Conditioning
from .syntax import plain_text
from .tokenizers import Chunk, clip_chunks, clip_ids, t5_chunk

MIN_MEAN = 1e-6
UNKNOWN_ROW, BOS_ROW, EOS_ROW = 0, 1, 2
TOKEN_IDS = "dpdmd_text_encoder.token_ids"
HALF_WIDTH = 2048  # T5-XXL is 4096 wide; encoders this wide run in bf16, smaller ones in fp32


@dataclass(frozen=True)
class Encoded:
    """One encoder's output for one prompt: tokens (1, T, D) and pooled (1, P) or None."""

    tokens: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class EncoderPlan:
    """How one prompt goes through one kind of encoder."""

    num_tokens: Callable[[str], int]
    encode: Callable[[nn.Module, str], Encoded]


def plan(kind: str, checkpoint: LoadedCheckpoint, clip_skip: int) -> EncoderPlan:
    """How prompts go through encoder `kind` of this checkpoint.

    Args:
        kind: "clip_l", "clip_g", "t5xxl" or "dpdmd".
        checkpoint: decides the hidden layer that is read: SD 1.x takes the last but `clip_skip` - 1
            through the final norm, SDXL and SD3 the last but one as it is.
        clip_skip: 1 is the last layer.
    """
    if kind == "t5xxl":
        return EncoderPlan(lambda text: len(t5_chunk(text).ids), _encode_t5)
    if kind == "dpdmd":
        rows = token_rows(checkpoint)
        length = _num_positions(checkpoint)
        return EncoderPlan(
            lambda text: length, lambda model, text: _encode_shapes(model, text, rows, length)
        )
    pad = 0 if kind == "clip_g" else EOS
    skip, normed = (clip_skip, True) if checkpoint.family.name == "sd1" else (2, False)
    layers = int(checkpoint.encoders[kind].config["num_hidden_layers"])
    if skip > layers:
        raise SettingsError(
            f"clip skip {skip} is too much: this CLIP has {layers} layers. Take 1 to {layers}."
        )
    return EncoderPlan(
        lambda text: sum(len(chunk.ids) for chunk in clip_chunks(text, pad)),
        lambda model, text: encode_clip(model, clip_chunks(text, pad), skip, normed),
    )


def encoder_dtype(component_config: Mapping[str, object]) -> torch.dtype:
    """fp32, but bf16 for T5-XXL, whose fp32 weights would take 19 GB."""
    width = component_config.get("d_model", 0)
    return torch.bfloat16 if isinstance(width, int) and width >= HALF_WIDTH else torch.float32


def encode_clip(model: nn.Module, chunks: Sequence[Chunk], skip: int, normed: bool) -> Encoded:
    """CLIP's output for the chunks of one prompt, tokens in one row, pooled from the first.

    Args:
        model: CLIPTextModel or CLIPTextModelWithProjection.
        chunks: of 77 tokens each.
        skip: which hidden layer, 1 the last, 2 the last but one.
        normed: whether the final norm is applied to it.
    """
    ids = _ids(chunks, model)
    text_model = _text_model(model)
    hidden = text_model(input_ids=ids, output_hidden_states=True).hidden_states
    last = text_model.final_layer_norm(hidden[-1])
    tokens = hidden[-skip]
    tokens = text_model.final_layer_norm(tokens) if normed else tokens
    pooled = _first(last, ids == EOS)
    projection = getattr(model, "text_projection", None)
    pooled = pooled if projection is None else projection(pooled)
    tokens = weighted(tokens, torch.tensor([chunk.weights for chunk in chunks]))
    return Encoded(tokens.reshape(1, -1, tokens.shape[-1]), pooled[:1])


def _text_model(model: nn.Module) -> CLIPTextModel:
    """The encoder proper; some classes hold it under `text_model`."""
    return getattr(model, "text_model", model)  # type: ignore[return-value]


def weighted(tokens: Tensor, weights: Tensor) -> Tensor:
    """Token outputs times their weights, brought back to the mean they had.

    Args:
        tokens: shape (chunks, T, D).
        weights: shape (chunks, T).
    """
    if bool((weights == 1).all()):
        return tokens
    changed = tokens * weights.to(tokens)[..., None]
    mean = changed.mean()
    return changed * (tokens.mean() / mean) if mean.abs() > MIN_MEAN else changed


def _encode_t5(model: nn.Module, text: str) -> Encoded:
    chunk = t5_chunk(text)
    tokens = model(input_ids=_ids([chunk], model)).last_hidden_state.float()
    return Encoded(weighted(tokens, torch.tensor([chunk.weights])), None)


def _encode_shapes(model: nn.Module, text: str, rows: Mapping[int, int], length: int) -> Encoded:
    found = [rows.get(token, UNKNOWN_ROW) for token in clip_ids(plain_text(text))][: length - 2]
    ids = [BOS_ROW, *found, EOS_ROW]
    ids = torch.tensor([ids + [EOS_ROW] * (length - len(ids))], device=_device(model))
    last = model(input_ids=ids).last_hidden_state
    return Encoded(last, _first(last, ids == EOS_ROW))


def token_rows(checkpoint: LoadedCheckpoint) -> dict[int, int]:
    """Embedding row of each CLIP token the shapes encoder knows."""
    weights = checkpoint.encoders["dpdmd"].weights
    ids = weights.read_full(TOKEN_IDS).tolist()
    return {int(token): row for row, token in enumerate(ids)}


def _num_positions(checkpoint: LoadedCheckpoint) -> int:
    return int(checkpoint.encoders["dpdmd"].config["max_position_embeddings"])


def _ids(chunks: Sequence[Chunk], model: nn.Module) -> Tensor:
    return torch.tensor([chunk.ids for chunk in chunks], device=_device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _first(hidden: Tensor, is_end: Tensor) -> Tensor:
    """The hidden state at the first end token of each row, shape (rows, D)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), is_end.int().argmax(dim=1)]


def combine(checkpoint: LoadedCheckpoint, parts: Mapping[str, Encoded]) -> Conditioning:
    """What the denoiser is told, from what its encoders said about one prompt.

    SD 1.x: CLIP-L. SDXL: CLIP-L and CLIP-G side by side, pooled CLIP-G. SD3: the same padded with
    zeros to the denoiser's width, then T5's tokens behind; an absent encoder leaves zeros in its
    place, an absent T5 no tokens, as in ComfyUI.
    """
    config, name = checkpoint.config, checkpoint.family.name
    width = int(str(config.get("joint_attention_dim") or config["cross_attention_dim"]))
    pooled_width = int(str(config.get("pooled_projection_dim") or 0))
    if "dpdmd" in parts:
        tokens, pooled = parts["dpdmd"].tokens, parts["dpdmd"].pooled
        assert pooled is not None
        pooled = _widen(pooled, pooled_width) if pooled_width else None
        return Conditioning(_widen(tokens, width), pooled, repeatable=name != "sd3")
    if name == "sd1":
        return Conditioning(parts["clip_l"].tokens)
    if name == "sdxl":
        tokens = _side_by_side([parts["clip_l"].tokens, parts["clip_g"].tokens])
        return Conditioning(tokens, parts["clip_g"].pooled)
    return _combine_sd3(parts, width, pooled_width)


def _combine_sd3(parts: Mapping[str, Encoded], width: int, pooled_width: int) -> Conditioning:
    clip = [parts[kind] for kind in ("clip_l", "clip_g") if kind in parts]
    rows = []
    pooled = torch.zeros(1, pooled_width)
    if clip:
        tokens = _side_by_side([part.tokens for part in clip])
        vector = torch.cat([part.pooled for part in clip if part.pooled is not None], dim=-1)
        missing = pooled_width - vector.shape[-1] if "clip_l" not in parts else 0
        tokens = torch.nn.functional.pad(
            tokens, (missing, 0)
        )  # CLIP-G keeps its place behind CLIP-L
        pooled = _widen(torch.nn.functional.pad(vector, (missing, 0)), pooled_width)
        rows.append(_widen(tokens, width))
    if "t5xxl" in parts:
        rows.append(parts["t5xxl"].tokens)
    dtype = rows[0].dtype
    return Conditioning(torch.cat([row.to(dtype) for row in rows], dim=1), pooled.to(dtype),
                        repeatable=False)  # fmt: skip


def _side_by_side(tokens: Sequence[Tensor]) -> Tensor:
    length = min(item.shape[1] for item in tokens)
    return torch.cat([item[:, :length] for item in tokens], dim=-1)


def _widen(tensor: Tensor, width: int) -> Tensor:
    """Zeros behind on the last axis up to `width`."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
