"""Text encoders as components: their layout in the file, and their dimensions off the tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from ...core.errors import CheckpointError
from ...core.families import TensorSource
from ...core.files.tensor_file import TensorFile, TensorInfo, read_header
from .names import Source, clip_source, openclip_source
from .weights import Component, Weights

TITLES = {"clip_l": "CLIP-L text encoder", "clip_g": "CLIP-G text encoder",
          "t5xxl": "T5 text encoder", "dpdmd": "shapes text encoder"}  # fmt: skip
ACTIVATIONS = {"clip_l": "quick_gelu", "clip_g": "gelu", "dpdmd": "quick_gelu"}
HEAD_WIDTHS = {"clip_l": 64, "clip_g": 64, "dpdmd": 32}
BOS, EOS = 49406, 49407
EMBEDDINGS = (
    "embeddings.token_embedding.weight",
    "token_embedding.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
)


def encoder_component(
    kind: str, files: Sequence[TensorFile], prefix: str, config: Mapping[str, object] | None = None
) -> Component:
    """Text encoder `kind` out of `files`.

    Args:
        kind: "clip_l", "clip_g", "t5xxl" or "dpdmd".
        files: headers of the file or shards.
        prefix: what its tensors' names start with.
        config: config.json of a diffusers folder; gives heads and activation.
    """
    weights = Weights(files, prefix)
    if kind == "t5xxl":
        return _t5_component(weights, config or {})
    openclip = "positional_embedding" in weights.infos
    source = openclip_source if openclip else clip_source(weights.infos)
    clip = _clip_config(kind, weights, source, config or {})
    cls = CLIPTextModelWithProjection if kind == "clip_g" else CLIPTextModel
    return Component(TITLES[kind], lambda: cls(clip), weights, source)


def encoder_file(kind: str, path: Path) -> Component:
    """Text encoder `kind` out of a file that the user named for it.

    Raises:
        CheckpointError: the file does not hold such an encoder.
    """
    file = read_header(path)
    for ending in EMBEDDINGS[2:] if kind == "t5xxl" else EMBEDDINGS[:2]:
        found = next((key for key in file.tensors if key.endswith(ending)), None)
        if found is not None:
            prefix = found.removesuffix(ending).removesuffix("text_model.")
            return encoder_component(kind, [file], prefix)
    raise CheckpointError(
        f"{file.path.name} does not hold a {TITLES[kind]} (no tensor named "
        f"'...{EMBEDDINGS[2 if kind == 't5xxl' else 0]}'). Give the encoder's own file."
    )


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


def _clip_config(
    kind: str, weights: Weights, source: Source, config: Mapping[str, object]
) -> CLIPTextConfig:
    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, source, name, TITLES[kind])

    vocabulary, width = shape("text_model.embeddings.token_embedding.weight")
    projected = source("text_projection.weight").key in weights.infos
    layer_norm = "text_model.encoder.layers.{}.layer_norm1.weight"
    # The shapes encoder numbers its few tokens itself: start is row 1, end is row 2.
    start, end = (BOS, EOS) if vocabulary > EOS else (1, 2)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_layers(weights.infos, source, layer_norm),
        num_attention_heads=_number(config, "num_attention_heads", width // HEAD_WIDTHS[kind]),
        max_position_embeddings=shape("text_model.embeddings.position_embedding.weight")[0],
        hidden_act=str(config.get("hidden_act") or ACTIVATIONS[kind]),
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
    infos = weights.infos
    embedding = next((name for name in EMBEDDINGS[2:] if name in infos), EMBEDDINGS[2])

    def source(name: str) -> TensorSource:
        return TensorSource(embedding if name in EMBEDDINGS[2:] else name)

    def shape(name: str) -> tuple[int, ...]:
        return _shape(weights, source, name, TITLES["t5xxl"])

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
    return Component(TITLES["t5xxl"], lambda: _t5_encoder(t5), weights, source)


def _t5_encoder(config: T5Config) -> nn.Module:
    return T5EncoderModel(config)
