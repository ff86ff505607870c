"""Text encoders tensor by tensor: what they consist of, and under which names files have it.

Parameters are called as transformers' modules call them.
"""

from collections.abc import Callable, Mapping

from ...files.tensor_file import TensorInfo
from ..base import TensorSource

Source = Callable[[str], TensorSource]
"""From a parameter's name in the module to the tensor of the file that holds its value."""
Shapes = dict[str, tuple[int, ...]]
PROJECTIONS = ("text_projection", "text_projection.weight")
"""Names of CLIP's last matrix: as OpenCLIP multiplies by it, and as torch's layers do."""
T5_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
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
MAX_LAYERS = 1000


def clip_source(infos: Mapping[str, TensorInfo]) -> Source:
    """Where a CLIP encoder's parameters lie, under OpenCLIP's names or transformers'."""
    return _openclip_source(infos) if is_openclip(infos) else _transformers_source(infos)


def is_openclip(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether a CLIP encoder lies under OpenCLIP's names, as SDXL files hold CLIP-G."""
    return "positional_embedding" in infos


def _transformers_source(infos: Mapping[str, TensorInfo]) -> Source:
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
        return openclip_place(name)

    return source


def openclip_place(name: str) -> TensorSource:
    """Where OpenCLIP has a parameter of CLIP's layers; ValueError if it has none of that name."""
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


def t5_source(infos: Mapping[str, TensorInfo]) -> Source:
    """Where a T5 encoder's parameters lie; its embedding has two names."""
    embedding = next((name for name in T5_EMBEDDINGS if name in infos), T5_EMBEDDINGS[0])

    def source(name: str) -> TensorSource:
        return TensorSource(embedding if name in T5_EMBEDDINGS else name)

    return source


def count_layers(infos: Mapping[str, TensorInfo], source: Source, pattern: str) -> int:
    """Number of layers in a row whose tensor of that pattern is there; at least one."""
    count = 0
    while count < MAX_LAYERS and source(pattern.format(count)).key in infos:
        count += 1
    return max(count, 1)  # at least one, so that the check names what is missing


CLIP_LAYERS = "text_model.encoder.layers.{}.layer_norm1.weight"
T5_LAYERS = "encoder.block.{}.layer.0.layer_norm.weight"


def clip_parameters(infos: Mapping[str, TensorInfo], *, projected: bool) -> Shapes:
    """Every parameter of the CLIP encoder that these tensors are, with its shape.

    Args:
        infos: its tensors; those of its embeddings are matrices.
        projected: whether its last matrix is read.
    """
    source = clip_source(infos)

    def rows(name: str, usual: int) -> int:
        info = infos.get(source(name).key)
        return info.shape[0] if info and info.shape else usual

    top = "text_model.embeddings"
    words, positions = f"{top}.token_embedding.weight", f"{top}.position_embedding.weight"
    width = infos[source(words).key].shape[1]
    shapes: Shapes = {
        words: (rows(words, 0), width),
        positions: (rows(positions, 0), width),
    }
    inner = rows("text_model.encoder.layers.0.mlp.fc1.weight", 4 * width)
    for index in range(count_layers(infos, source, CLIP_LAYERS)):
        layer = f"text_model.encoder.layers.{index}"
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, inner)
    shapes |= {f"text_model.final_layer_norm.{leaf}": (width,) for leaf in ("weight", "bias")}
    if projected:
        item = source("text_projection.weight")
        info = infos.get(item.key)
        size = info.shape[-1 if item.change == "transpose" else 0] if info and info.shape else width
        shapes["text_projection.weight"] = (size, width)
    return shapes


QWEN3_EMBEDDING, ADAPTER_EMBEDDING = "embed_tokens.weight", "embed.weight"
QWEN3_LAYERS, ADAPTER_LAYERS = "layers.{}.input_layernorm.weight", "blocks.{}.norm_mlp.weight"


def qwen3_parameters(infos: Mapping[str, TensorInfo]) -> Shapes:
    """Every parameter of the Qwen3 language model that these tensors are, with its shape.

    Args:
        infos: its tensors; its embedding and its first layer's projections are matrices, its first
            layer's norm of queries is a vector.
    """
    first = "layers.0"
    vocabulary, width = infos[QWEN3_EMBEDDING].shape
    (head,) = infos[f"{first}.self_attn.q_norm.weight"].shape
    queries = infos[f"{first}.self_attn.q_proj.weight"].shape[0]
    keys = infos[f"{first}.self_attn.k_proj.weight"].shape[0]
    inner = infos[f"{first}.mlp.gate_proj.weight"].shape[0]
    shapes: Shapes = {QWEN3_EMBEDDING: (vocabulary, width), "norm.weight": (width,)}
    for index in range(count_layers(infos, TensorSource, QWEN3_LAYERS)):
        layer = f"layers.{index}"
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, width)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, queries)
        for name in ("q_norm", "k_norm"):
            shapes[f"{layer}.self_attn.{name}.weight"] = (head,)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    return shapes


def adapter_parameters(infos: Mapping[str, TensorInfo]) -> Shapes:
    """Every parameter of the adapter from a language model that these tensors are, with its shape.

    Args:
        infos: its tensors; its embedding, its last layer, and its first block's keys and first
            feed-forward layer are matrices, its first block's norm of queries is a vector.
    """
    vocabulary, target = infos[ADAPTER_EMBEDDING].shape
    width = infos["out_proj.weight"].shape[1]
    source = infos["blocks.0.cross_attn.k_proj.weight"].shape[1]
    (head,) = infos["blocks.0.cross_attn.q_norm.weight"].shape
    inner = infos["blocks.0.mlp.0.weight"].shape[0]
    shapes: Shapes = {ADAPTER_EMBEDDING: (vocabulary, target), "norm.weight": (target,)}
    shapes |= _linear("out_proj", target, width)
    if width != target:
        shapes |= _linear("in_proj", width, target)
    for index in range(count_layers(infos, TensorSource, ADAPTER_LAYERS)):
        block = f"blocks.{index}"
        for name in ("self_attn", "cross_attn", "mlp"):
            shapes[f"{block}.norm_{name}.weight"] = (width,)
        for attention, columns in (("self_attn", width), ("cross_attn", source)):
            for name in ("q_norm", "k_norm"):
                shapes[f"{block}.{attention}.{name}.weight"] = (head,)
            for name in ("q_proj", "o_proj"):
                shapes[f"{block}.{attention}.{name}.weight"] = (width, width)
            for name in ("k_proj", "v_proj"):
                shapes[f"{block}.{attention}.{name}.weight"] = (width, columns)
        shapes |= _linear(f"{block}.mlp.0", inner, width)
        shapes |= _linear(f"{block}.mlp.2", width, inner)
    return shapes


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def t5_parameters(infos: Mapping[str, TensorInfo]) -> Shapes:
    """Every parameter of the T5 encoder that these tensors are, with its shape.

    Args:
        infos: its tensors; its embedding and its first layer's queries, bias and gate are matrices.
    """
    source, first = t5_source(infos), "encoder.block.0.layer"
    vocabulary, width = infos[source(T5_EMBEDDINGS[0]).key].shape
    bias = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = infos[bias].shape
    inner = infos[f"{first}.0.SelfAttention.q.weight"].shape[0] // heads * heads
    gate = infos[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0]
    shapes: Shapes = {T5_EMBEDDINGS[0]: (vocabulary, width), bias: (buckets, heads)}
    for index in range(count_layers(infos, source, T5_LAYERS)):
        layer = f"encoder.block.{index}.layer"
        for name in "qkv":
            shapes[f"{layer}.0.SelfAttention.{name}.weight"] = (inner, width)
        shapes[f"{layer}.0.SelfAttention.o.weight"] = (width, inner)
        shapes[f"{layer}.0.layer_norm.weight"] = (width,)
        for name in ("wi_0", "wi_1"):
            shapes[f"{layer}.1.DenseReluDense.{name}.weight"] = (gate, width)
        shapes[f"{layer}.1.DenseReluDense.wo.weight"] = (width, gate)
        shapes[f"{layer}.1.layer_norm.weight"] = (width,)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return shapes
