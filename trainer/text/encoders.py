"""Prompts through the text encoders; each family's torch half puts the outputs together.

Weights are honoured as A1111 does: every token's output is multiplied by its weight and the whole
is scaled back to its former mean. (ComfyUI blends with the empty prompt's output instead;
unweighted prompts are the same in both.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ...core.errors import SettingsError
from ...core.families import stated_encoder
from ...core.families.base import TextFacts
from ..loading.checkpoint import Checkpoint
from ..loading.encoders import EOS
from ..loading.weights import Component
from ..model.conditioning import Conditioning, Encoded
from .tokenizers import Chunk, clip_chunks, qwen_ids, t5_chunk

MIN_MEAN = 1e-6
HALF_WIDTH = 2048  # T5-XXL is 4096 wide; encoders this wide keep 16-bit weights, others fp32


@dataclass(frozen=True)
class EncoderPlan:
    """How one prompt goes through one kind of encoder.

    `encode` is given (the encoder, the prompt, what the encoders before it said of that, by kind).
    `notes` says what a person should know of these prompts, such as words without a meaning.
    """

    num_tokens: Callable[[str], int]
    encode: Callable[[nn.Module, str, Mapping[str, Encoded]], Encoded]
    notes: Callable[[Sequence[str]], list[str]] = lambda prompts: []


PlanMaker = Callable[[str, Checkpoint, int], EncoderPlan]
"""(kind, checkpoint, clip skip as the user counts it) -> how prompts go through its encoder."""


def plan(kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    """How prompts go through encoder `kind` of this checkpoint.

    Args:
        kind: one of `KINDS`.
        checkpoint: its family decides the hidden layer that is read.
        clip_skip: 1 is the last layer.
    """
    return KINDS[kind](kind, checkpoint, clip_skip)


def read_layer(checkpoint: Checkpoint, clip_skip: int) -> int:
    """The CLIP layer that is read, 1 the last: the user's where the family has a clip skip."""
    text = checkpoint.family.text
    return clip_skip if text.clip_skip else text.hidden_layer


def _plan_clip(pad: int, kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    skip, normed = read_layer(checkpoint, clip_skip), checkpoint.family.text.final_norm
    layers = int(checkpoint.encoders[kind].config["num_hidden_layers"])
    if skip > layers:
        raise SettingsError(
            f"clip skip {skip} is too much: this CLIP has {layers} layers. Take 1 to {layers}."
        )
    return EncoderPlan(
        lambda text: sum(len(chunk.ids) for chunk in clip_chunks(text, pad)),
        lambda model, text, before: encode_clip(model, clip_chunks(text, pad), skip, normed),
    )


def _plan_t5(kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    return EncoderPlan(lambda text: len(t5_chunk(text).ids), _encode_t5)


def encoder_dtype(component: Component) -> torch.dtype:
    """Of an encoder's weights; T5-XXL's and Qwen3-4B's would take 19 and 16 GB in fp32.

    Those are kept as their file has them, or in bf16; the arithmetic is fp32 all the same.
    """
    config = component.config
    width = config.get("d_model", config.get("hidden_size", 0))
    if not isinstance(width, int) or width < HALF_WIDTH:
        return torch.float32
    stored = {info.dtype for info in component.weights.infos.values()}
    return torch.float16 if stored <= {"F16"} else torch.bfloat16


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
    pooled = first_state(last, ids == EOS)
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


def _encode_t5(model: nn.Module, text: str, before: Mapping[str, Encoded]) -> Encoded:
    chunk = t5_chunk(text)
    tokens = model(input_ids=_ids([chunk], model)).last_hidden_state.float()
    return Encoded(weighted(tokens, torch.tensor([chunk.weights])), None)


def _plan_qwen3(kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    facts = checkpoint.family.text
    return EncoderPlan(
        lambda text: len(qwen_ids(text, facts.template)),
        lambda model, text, before: _encode_qwen3(model, qwen_ids(text, facts.template), facts),
    )


def _encode_qwen3(model: nn.Module, ids: list[int], facts: TextFacts) -> Encoded:
    """The states that the family reads; weights of a prompt change nothing, as in ComfyUI."""
    given = torch.tensor([ids], device=device_of(model))
    hidden = model(input_ids=given, use_cache=False, output_hidden_states=True).hidden_states
    assert facts.final_norm == (facts.hidden_layer == 1), "the last layer alone has a norm behind"
    return Encoded(hidden[-facts.hidden_layer].float(), None)


def _plan_adapter(kind: str, checkpoint: Checkpoint, clip_skip: int) -> EncoderPlan:
    return EncoderPlan(lambda text: len(t5_chunk(text, 1).ids), _encode_adapter)


def _encode_adapter(model: nn.Module, text: str, before: Mapping[str, Encoded]) -> Encoded:
    """A row for each of T5's tokens, times its weight (ComfyUI does not bring the mean back)."""
    chunk = t5_chunk(text, 1)
    states = before["qwen3"].tokens.to(device_of(model), next(model.parameters()).dtype)
    rows = model(states, _ids([chunk], model)).float()
    return Encoded(rows * torch.tensor([chunk.weights]).to(rows)[..., None], None)


def _ids(chunks: Sequence[Chunk], model: nn.Module) -> Tensor:
    return torch.tensor([chunk.ids for chunk in chunks], device=device_of(model))


def device_of(model: nn.Module) -> torch.device:
    """Where a network lies."""
    return next(model.parameters()).device


def first_state(hidden: Tensor, is_end: Tensor) -> Tensor:
    """The hidden state at the first end token of each row, shape (rows, D)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), is_end.int().argmax(dim=1)]


def combine(checkpoint: Checkpoint, parts: Mapping[str, Encoded]) -> Conditioning:
    """What the denoiser is told, from what its encoders said about one prompt."""
    own = stated_encoder(checkpoint.detection)
    if own is not None and own in parts:
        return checkpoint.half.combine_own(checkpoint.config, parts[own])
    return checkpoint.half.combine(checkpoint.config, parts)


KINDS: dict[str, PlanMaker] = {
    "clip_l": partial(_plan_clip, EOS),
    "clip_g": partial(_plan_clip, 0),
    "t5xxl": _plan_t5,
    "qwen3": _plan_qwen3,
    "llm_adapter": _plan_adapter,
}


def register(kind: str, how: PlanMaker) -> None:
    """Make a further kind of text encoder known; again is the same."""
    KINDS[kind] = how
