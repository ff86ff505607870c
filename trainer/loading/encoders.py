"""Text encoders as components: their layout in the file, and their dimensions off the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.condition_embedders.condition_embedder_anima import (
    AnimaRotaryEmbedding,
    AnimaTextConditioner,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from ...core.errors import CheckpointError
from ...core.families import TensorSource
from ...core.families.parts.encoder_layout import (
    ADAPTER_EMBEDDING,
    ADAPTER_LAYERS,
    CLIP_LAYERS,
    QWEN3_EMBEDDING,
    QWEN3_LAYERS,
    T5_LAYERS,
    clip_source,
    count_layers,
    t5_source,
)
from ...core.families.parts.encoders import HEAD_WIDTH, TITLES
from ...core.files.tensor_file import TensorFile
from .weights import Component, Source, Weights

T5_TITLE = TITLES["t5xxl"]
BOS, EOS = 49406, 49407
QWEN3_THETA = 1e6


@dataclass(frozen=True)
class EncoderKind:
    """How one kind of text encoder lies in files. What it makes of a prompt is said in text/.

    Attributes:
        title: what messages call it.
        component: the encoder out of (its tensors, config.json of a diffusers folder or nothing).
    """

    title: str
    component: Callable[[Weights, Mapping[str, object]], Component]


def encoder_component(
    kind: str, files: Sequence[TensorFile], prefix: str, config: Mapping[str, object] | None = None
) -> Component:
    """Text encoder `kind` out of `files`.

    Args:
        kind: one of `KINDS`.
        files: headers of the file or shards.
        prefix: what its tensors' names start with.
        config: config.json of a diffusers folder; gives heads and activation.

    Raises:
        CheckpointError: the checkpoint states a kind that is not known here.
    """
    if kind not in KINDS:
        raise CheckpointError(
            f"{files[0].path.name} brings a text encoder of the kind {kind!r}, which is not known "
            f"here (known are {', '.join(KINDS)}). It may need a newer version of DP-DMD Studio."
        )
    return KINDS[kind].component(Weights(files, prefix), config or {})


def encoder_title(kind: str) -> str:
    """What messages call an encoder of this kind."""
    return KINDS[kind].title


def _shape(weights: Weights, source: Source, name: str, what: str) -> tuple[int, ...]:
    key = source(name).key
    info = weights.infos.get(key)
    if info is None or len(info.shape) != 2:
        found = "is missing" if info is None else f"has shape {info.shape}"
        raise CheckpointError(
            f"{weights.label}: {weights.prefix + key!r} of the {what} {found}; a matrix was "
            "expected. The file is incomplete or damaged."
        )
    return info.shape


@dataclass(frozen=True)
class ClipFacts:
    """What the shapes of a CLIP text encoder do not tell.

    Attributes:
        projected: whether the pooled vector goes through a projection.
    """

    title: str
    activation: str = "quick_gelu"
    head_width: int = HEAD_WIDTH
    projected: bool = False


CLIP_L = ClipFacts(TITLES["clip_l"])
CLIP_G = ClipFacts(TITLES["clip_g"], "gelu", projected=True)


def clip_component(
    facts: ClipFacts,
    weights: Weights,
    config: Mapping[str, object],
    extra: tuple[str, ...] = (),
) -> Component:
    """A CLIP text encoder, its dimensions off the tensors.

    Args:
        config: config.json of a diffusers folder; gives heads and activation.
        extra: full names of further tensors that belong to it.
    """
    source = clip_source(weights.infos)
    clip = _clip_config(facts, weights, source, config)
    cls = CLIPTextModelWithProjection if facts.projected else CLIPTextModel
    return Component(facts.title, lambda: cls(clip), weights, source, extra=extra)


def _clip_config(
    facts: ClipFacts, weights: Weights, source: Source, config: Mapping[str, object]
) -> CLIPTextConfig:
    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, source, name, facts.title)

    vocabulary, width = shape("text_model.embeddings.token_embedding.weight")
    projected = source("text_projection.weight").key in weights.infos
    # An encoder of few tokens numbers them itself: start is row 1, end is row 2.
    start, end = (BOS, EOS) if vocabulary > EOS else (1, 2)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=count_layers(weights.infos, source, CLIP_LAYERS),
        num_attention_heads=_number(config, "num_attention_heads", width // facts.head_width),
        max_position_embeddings=shape("text_model.embeddings.position_embedding.weight")[0],
        hidden_act=str(config.get("hidden_act") or facts.activation),
        projection_dim=_projection_width(weights, source) if projected else width,
        bos_token_id=start,
        eos_token_id=end,
    )


def _projection_width(weights: Weights, source: Source) -> int:
    item = source("text_projection.weight")
    shape = weights.infos[item.key].shape
    return shape[-1] if item.change == "transpose" else shape[0]


def _number(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else max(1, default)


def _t5_component(weights: Weights, config: Mapping[str, object]) -> Component:
    infos, source = weights.infos, t5_source(weights.infos)

    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, source, name, T5_TITLE)

    vocabulary, width = shape("shared.weight")
    layer = "encoder.block.0.layer."
    buckets, heads = shape(f"{layer}0.SelfAttention.relative_attention_bias.weight")
    t5 = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shape(f"{layer}0.SelfAttention.q.weight")[0] // heads,
        d_ff=shape(f"{layer}1.DenseReluDense.wi_0.weight")[0],
        num_layers=count_layers(infos, source, T5_LAYERS),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    return Component(T5_TITLE, lambda: T5EncoderModel(t5), weights, source)


def _qwen3_component(weights: Weights, config: Mapping[str, object]) -> Component:
    """The language model without its last layer, which is its embedding once more."""
    infos, title = weights.infos, TITLES["qwen3"]

    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, TensorSource, name, title)

    vocabulary, width = shape(QWEN3_EMBEDDING)
    head = infos["layers.0.self_attn.q_norm.weight"].shape[0]
    qwen3 = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=count_layers(infos, TensorSource, QWEN3_LAYERS),
        num_attention_heads=shape("layers.0.self_attn.q_proj.weight")[0] // head,
        num_key_value_heads=shape("layers.0.self_attn.k_proj.weight")[0] // head,
        head_dim=head,
        rope_parameters={"rope_type": "default", "rope_theta": QWEN3_THETA},
        use_cache=False,
    )

    def factory() -> nn.Module:
        model = Qwen3Model(qwen3)
        with torch.device("cpu"):  # its frequencies are in no file
            model.rotary_emb = Qwen3RotaryEmbedding(qwen3)
        return model

    return Component(title, factory, weights, TensorSource)


def _adapter_component(weights: Weights, config: Mapping[str, object]) -> Component:
    infos, title = weights.infos, TITLES["llm_adapter"]

    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, TensorSource, name, title)

    vocabulary, target = shape(ADAPTER_EMBEDDING)
    width = shape("out_proj.weight")[1]
    head = infos["blocks.0.cross_attn.q_norm.weight"].shape[0]

    def factory() -> nn.Module:
        model = AnimaTextConditioner(
            source_dim=shape("blocks.0.cross_attn.k_proj.weight")[1],
            target_dim=target,
            model_dim=width,
            num_layers=count_layers(infos, TensorSource, ADAPTER_LAYERS),
            num_attention_heads=width // head,
            mlp_ratio=shape("blocks.0.mlp.0.weight")[0] / width,
            target_vocab_size=vocabulary,
            min_sequence_length=0,  # empty rows are added where the denoiser is called
        )
        with torch.device("cpu"):
            model.rotary_emb = AnimaRotaryEmbedding(head)
        return model

    return Component(title, factory, weights, TensorSource)


KINDS = {
    "clip_l": EncoderKind(CLIP_L.title, partial(clip_component, CLIP_L)),
    "clip_g": EncoderKind(CLIP_G.title, partial(clip_component, CLIP_G)),
    "t5xxl": EncoderKind(T5_TITLE, _t5_component),
    "qwen3": EncoderKind(TITLES["qwen3"], _qwen3_component),
    "llm_adapter": EncoderKind(TITLES["llm_adapter"], _adapter_component),
}


def register(kind: str, how: EncoderKind) -> None:
    """Make a further kind of text encoder known; again is the same."""
    KINDS[kind] = how
