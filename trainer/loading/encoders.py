"""Text encoders as components: their layout in the file, and their dimensions off the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from ...core.errors import CheckpointError
from ...core.families import TensorSource
from ...core.families.encoders import HEAD_WIDTH, PROJECTIONS, T5_EMBEDDINGS, TITLES
from ...core.files.tensor_file import TensorFile, TensorInfo
from .weights import Component, Source, Weights

T5_TITLE = TITLES["t5xxl"]
BOS, EOS = 49406, 49407
OPENCLIP_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


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


def _layers(infos: Mapping[str, TensorInfo], source: Source, pattern: str) -> int:
    count = 0
    while source(pattern.format(count)).key in infos:
        count += 1
    return max(count, 1)  # at least one, so that the check names what is missing


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
    openclip = "positional_embedding" in weights.infos
    source = _openclip_source(weights.infos) if openclip else _clip_source(weights.infos)
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
    layer_norm = "text_model.encoder.layers.{}.layer_norm1.weight"
    # An encoder of few tokens numbers them itself: start is row 1, end is row 2.
    start, end = (BOS, EOS) if vocabulary > EOS else (1, 2)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_layers(weights.infos, source, layer_norm),
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


def _clip_source(infos: Mapping[str, TensorInfo]) -> Source:
    """For CLIP encoders stored under transformers' names.

    transformers 5.6 dropped `text_model.` from CLIPTextModel's own names, and a few old files lack
    it too, so the prefix is taken from the file.
    """
    prefix = "text_model." if any(key.startswith("text_model.") for key in infos) else ""

    def source(name: str) -> TensorSource:
        if name.startswith("text_projection."):
            return _projection_source(infos, PROJECTIONS[1])
        return TensorSource(prefix + name.removeprefix("text_model."))

    return source


def _projection_source(infos: Mapping[str, TensorInfo], usual: str) -> TensorSource:
    """CLIP's projection under either name: OpenCLIP's multiplies from the other side."""
    name = next((name for name in PROJECTIONS if name in infos), usual)
    return TensorSource(name, change="transpose" if name == PROJECTIONS[0] else "none")


def _openclip_source(infos: Mapping[str, TensorInfo]) -> Source:
    """For CLIP-G as SDXL files hold it: OpenCLIP's names and fused q/k/v."""

    def source(name: str) -> TensorSource:
        if name == "text_projection.weight":
            return _projection_source(infos, PROJECTIONS[0])
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        if name in OPENCLIP_TOP:
            return TensorSource(OPENCLIP_TOP[name])
        _, _, _, index, inner = name.split(".", 4)
        module, _, leaf = inner.rpartition(".")
        block = f"transformer.resblocks.{index}"
        if module in OPENCLIP_LAYER:
            return TensorSource(f"{block}.{OPENCLIP_LAYER[module]}.{leaf}")
        part = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(module)
        return TensorSource(f"{block}.attn.in_proj_{leaf}", part)

    return source


def _number(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else max(1, default)


def _t5_component(weights: Weights, config: Mapping[str, object]) -> Component:
    infos = weights.infos
    embedding = next((name for name in T5_EMBEDDINGS if name in infos), T5_EMBEDDINGS[0])

    def source(name: str) -> TensorSource:
        return TensorSource(embedding if name in T5_EMBEDDINGS else name)

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
        num_layers=_layers(infos, source, "encoder.block.{}.layer.0.layer_norm.weight"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    return Component(T5_TITLE, lambda: T5EncoderModel(t5), weights, source)


KINDS = {
    "clip_l": EncoderKind(CLIP_L.title, partial(clip_component, CLIP_L)),
    "clip_g": EncoderKind(CLIP_G.title, partial(clip_component, CLIP_G)),
    "t5xxl": EncoderKind(T5_TITLE, _t5_component),
}


def register(kind: str, how: EncoderKind) -> None:
    """Make a further kind of text encoder known; again is the same."""
    KINDS[kind] = how
