"""Text encoders as their headers show them: what each is, and whether it belongs to the model.

CLIP-L, CLIP-G, T5, Qwen3 and the adapter behind it are known here; kinds that a checkpoint brings
of its own are looked at by whoever loads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ...errors import CheckpointError, UnsupportedModelError
from ...files.tensor_file import TensorFile, TensorInfo, read_model_header
from ..base import Config, Family, TensorSource
from ..unsupported import refuse_empty, refuse_quantised
from .complete import Stored, check_tensors
from .config_values import Rule, check_config, is_whole, number, one_of
from .encoder_layout import (
    ADAPTER_EMBEDDING,
    PROJECTIONS,
    QWEN3_EMBEDDING,
    T5_EMBEDDINGS,
    adapter_parameters,
    clip_parameters,
    clip_source,
    is_openclip,
    qwen3_parameters,
    t5_parameters,
    t5_source,
)

TITLES = {
    "clip_l": "CLIP-L text encoder",
    "clip_g": "CLIP-G text encoder",
    "t5xxl": "T5 text encoder",
    "qwen3": "Qwen3 text encoder",
    "llm_adapter": "text adapter",
}
FILES = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5", "qwen3": "qwen"}
"""Of a kind that may be a file of its own: its name among the files of a model."""
CLIP_EMBEDDINGS = ("embeddings.token_embedding.weight", "token_embedding.weight")
ENDINGS = {
    "clip_l": CLIP_EMBEDDINGS,
    "clip_g": CLIP_EMBEDDINGS,
    "t5xxl": T5_EMBEDDINGS,
    "qwen3": (QWEN3_EMBEDDING,),
}
"""Endings of an encoder's first tensor, by which a file of its own is known."""
PUBLISHED_WIDTHS = {768: "clip_l", 1280: "clip_g"}
HEAD_WIDTH = 64
CLIP_TOKENS, CLIP_POSITIONS, T5_TOKENS = 49408, 77, range(32100, 32129)
QWEN3_TOKENS = 151_669
"""Tokens of its vocabulary, those with a meaning of their own counted; its table may be longer."""
CLIP_RULES = {
    "hidden_act": Rule(one_of(None, "quick_gelu", "gelu"), "'quick_gelu' or 'gelu'"),
    "layer_norm_eps": Rule(number(1e-5), "1e-05"),
    "num_attention_heads": Rule(is_whole, "a whole number"),
}
T5_RULES = {
    "feed_forward_proj": Rule(one_of("gated-gelu"), "'gated-gelu'"),
    "dense_act_fn": Rule(one_of("gelu_new"), "'gelu_new'"),
    "layer_norm_epsilon": Rule(number(1e-6), "1e-06"),
    "relative_attention_max_distance": Rule(one_of(128), "128"),
}


@dataclass(frozen=True)
class EncoderPlace:
    """Where a text encoder lies: header of its file or shards, what its names start with.

    `config` is the config.json of a diffusers folder, empty elsewhere.
    """

    files: tuple[TensorFile, ...]
    prefix: str
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name to show for where it lies."""
        first = self.files[0].path
        if self.config or len(self.files) > 1:
            return f"{first.parent.name}/"
        return first.name

    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors, names without the prefix."""
        return {k: info for file in self.files for k, info in file.under(self.prefix).items()}


@dataclass(frozen=True)
class EncoderWidths:
    """Width of what an encoder says of each token, and of the whole prompt (0: nothing).

    `reads` is the width of what it reads of the encoder before it, 0 if it reads the prompt alone.
    """

    label: str
    tokens: int
    pooled: int
    reads: int = 0


def encoder_in_file(kind: str, path: Path, families: Sequence[Family]) -> EncoderPlace:
    """Text encoder `kind` in a file that the user named for it, its own or a whole checkpoint.

    Raises:
        CheckpointError: the file does not hold such an encoder.
    """
    file = read_model_header(path)
    found = [
        key.removesuffix(ending).removesuffix("text_model.")
        for ending in ENDINGS[kind]
        for key in file.tensors
        if key.endswith(ending)
    ]
    if not found:
        raise CheckpointError(
            f"{file.path.name} does not hold a {TITLES[kind]} (no tensor named "
            f"'...{ENDINGS[kind][0]}'). Give the encoder's own file."
        )
    usual = {prefix for item in families for prefix in item.text.prefixes.get(kind, ())}
    return EncoderPlace((file,), next((prefix for prefix in found if prefix in usual), found[0]))


def read_encoder(kind: str, place: EncoderPlace) -> EncoderWidths | None:
    """What there is to know of a text encoder before it is loaded; None of a foreign kind.

    Raises:
        CheckpointError: it is not what its place or option says, or is damaged.
        UnsupportedModelError: it is of a variant that is not handled.
    """
    if kind not in TITLES:
        return None
    tensors = place.tensors()
    what = f"{place.label} ({TITLES[kind]})"
    refuse_quantised(what, (place.prefix + name for name in tensors))
    refuse_empty(what, place.prefix, tensors)
    matrix = _matrices(place, tensors, kind)
    if kind == "qwen3":
        widths = _qwen3(place, tensors, matrix)
        source, shapes = TensorSource, qwen3_parameters(tensors)
    elif kind == "llm_adapter":
        widths = _adapter(place, tensors, matrix)
        source, shapes = TensorSource, adapter_parameters(tensors)
    elif kind == "t5xxl":
        check_config(place.config, T5_RULES, what)
        widths = _t5(place, tensors, matrix)
        source, shapes = t5_source(tensors), t5_parameters(tensors)
    else:
        check_config(place.config, CLIP_RULES, what)
        widths = _clip(kind, place, tensors, matrix)
        source = clip_source(tensors)
        shapes = clip_parameters(tensors, projected=kind == "clip_g")
    needed = {name: (source(name), shape) for name, shape in shapes.items()}
    check_tensors(Stored(place.label, place.prefix, tensors), needed, TITLES[kind])
    return widths


Matrix = Callable[[str], tuple[int, int]]


def _matrices(place: EncoderPlace, tensors: Mapping[str, TensorInfo], kind: str) -> Matrix:
    def matrix(name: str) -> tuple[int, int]:
        """The shape of a matrix that must be there."""
        info = tensors.get(name)
        if info is None or len(info.shape) != 2:
            found = "is missing" if info is None else f"has shape {info.shape}"
            raise CheckpointError(
                f"{place.label}: {place.prefix + name!r} of the {TITLES[kind]} {found}; a matrix "
                "was expected. The file is incomplete or damaged."
            )
        return info.shape[0], info.shape[1]

    return matrix


def _clip(
    kind: str, place: EncoderPlace, tensors: Mapping[str, TensorInfo], matrix: Matrix
) -> EncoderWidths:
    if not any(name.endswith(CLIP_EMBEDDINGS) for name in tensors) and _is_t5(tensors):
        raise _not_that(place, "a T5 text encoder", kind)
    openclip = is_openclip(tensors)
    start = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    names = ("token_embedding.weight", "positional_embedding")
    if not openclip:
        names = (
            f"{start}embeddings.token_embedding.weight",
            f"{start}embeddings.position_embedding.weight",
        )
    (vocabulary, width), (positions, _) = map(matrix, names)
    published = PUBLISHED_WIDTHS.get(width, kind)
    if published != kind:
        raise _not_that(place, f"a {TITLES[published]} ({width} wide)", kind)
    if vocabulary < CLIP_TOKENS or positions < CLIP_POSITIONS:
        raise CheckpointError(
            f"{place.label}: its text encoder knows {vocabulary} tokens and {positions} positions; "
            f"a {TITLES[kind]} knows {CLIP_TOKENS} and {CLIP_POSITIONS}. Give the encoder that "
            "this model was trained with."
        )
    heads = place.config.get("num_attention_heads", max(1, width // HEAD_WIDTH))
    if width % int(str(heads)):
        raise UnsupportedModelError(
            f"{place.label} ({TITLES[kind]}): {heads} attention heads do not divide its width of "
            f"{width}. The file or its config.json is damaged, or of a variant that is not "
            "supported."
        )
    projection = next((name for name in PROJECTIONS if name in tensors), None)
    if kind == "clip_l":
        return EncoderWidths(place.label, width, width)
    if projection is None:
        usual = PROJECTIONS[0] if openclip else PROJECTIONS[1]
        raise CheckpointError(
            f"{place.label}: the {TITLES[kind]} lacks {place.prefix + usual!r}. It may be a "
            f"{TITLES['clip_l']}, which needs none, or a CLIP-G that was cut short: give the "
            "encoder's complete file."
        )
    rows, columns = matrix(projection)
    return EncoderWidths(place.label, width, columns if projection == PROJECTIONS[0] else rows)


def _is_t5(tensors: Mapping[str, TensorInfo]) -> bool:
    return any(name.endswith(T5_EMBEDDINGS) for name in tensors)


def _t5(place: EncoderPlace, tensors: Mapping[str, TensorInfo], matrix: Matrix) -> EncoderWidths:
    if not _is_t5(tensors) and any(name.endswith(CLIP_EMBEDDINGS) for name in tensors):
        raise _not_that(place, "a CLIP text encoder", "t5xxl")
    vocabulary, width = matrix(next((n for n in T5_EMBEDDINGS if n in tensors), T5_EMBEDDINGS[0]))
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    if vocabulary not in T5_TOKENS or bias.format(1) in tensors:
        raise _not_that(place, f"umT5 or another relative ({vocabulary} tokens)", "t5xxl")
    if "encoder.block.0.layer.1.DenseReluDense.wi.weight" in tensors:
        raise _not_that(place, "T5 of version 1.0", "t5xxl")
    _, heads = matrix(bias.format(0))
    rows, _ = matrix("encoder.block.0.layer.0.SelfAttention.q.weight")
    if rows % heads:
        raise CheckpointError(
            f"{place.label}: {heads} attention heads do not divide the {rows} rows of the T5 text "
            "encoder's queries. The file is damaged."
        )
    matrix("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
    return EncoderWidths(place.label, width, 0)


def _qwen3(place: EncoderPlace, tensors: Mapping[str, TensorInfo], matrix: Matrix) -> EncoderWidths:
    own, gemma = "layers.0.self_attn.q_norm.weight", "layers.0.post_feedforward_layernorm.weight"
    if own not in tensors or gemma in tensors:
        raise _not_that(place, "another language model, or another kind of encoder", "qwen3")
    vocabulary, width = matrix(QWEN3_EMBEDDING)
    if vocabulary < QWEN3_TOKENS:
        raise _not_that(place, f"a language model of {vocabulary} tokens", "qwen3")
    head = _length(place, tensors, own, "qwen3")
    rows = [matrix(f"layers.0.self_attn.{name}_proj.weight")[0] for name in "qk"]
    matrix("layers.0.mlp.gate_proj.weight")
    if any(row % head for row in rows) or rows[0] % rows[1]:
        raise CheckpointError(
            f"{place.label}: the {TITLES['qwen3']} has {rows[0]} rows of queries and {rows[1]} of "
            f"keys for heads of {head}, which do not go together. The file is damaged."
        )
    return EncoderWidths(place.label, width, 0)


def _adapter(
    place: EncoderPlace, tensors: Mapping[str, TensorInfo], matrix: Matrix
) -> EncoderWidths:
    vocabulary, target = matrix(ADAPTER_EMBEDDING)
    _, width = matrix("out_proj.weight")
    _, reads = matrix("blocks.0.cross_attn.k_proj.weight")
    inner, _ = matrix("blocks.0.mlp.0.weight")
    head = _length(place, tensors, "blocks.0.cross_attn.q_norm.weight", "llm_adapter")
    if vocabulary not in T5_TOKENS or width % head or inner % width:
        raise UnsupportedModelError(
            f"{place.label}: a {TITLES['llm_adapter']} of {vocabulary} tokens, width {width}, "
            f"heads of {head} and a feed-forward layer of {inner} is damaged, or of a variant that "
            "is not supported."
        )
    return EncoderWidths(place.label, target, 0, reads)


def _length(place: EncoderPlace, tensors: Mapping[str, TensorInfo], name: str, kind: str) -> int:
    """The length of a vector that must be there."""
    info = tensors.get(name)
    if info is None or len(info.shape) != 1 or not info.shape[0]:
        found = "is missing" if info is None else f"has shape {info.shape}"
        raise CheckpointError(
            f"{place.label}: {place.prefix + name!r} of the {TITLES[kind]} {found}; a vector was "
            "expected. The file is incomplete or damaged."
        )
    return info.shape[0]


def _option(kind: str) -> str:
    return f"--{FILES.get(kind, kind).replace('_', '-')}"


def _not_that(place: EncoderPlace, found: str, kind: str) -> CheckpointError:
    option = f" ({_option(kind)})"
    return CheckpointError(
        f"{place.label} holds {found} where a {TITLES[kind]} is expected{option}. Give the encoder "
        "that this model was trained with."
    )


def _where_found(family: Family, absent: Sequence[str]) -> str:
    """A sentence of the files that are taken by themselves where a host keeps them; "" for none."""
    names = [family.text.published[kind] for kind in absent if kind in family.text.published]
    if not names:
        return ""
    files = " and ".join(names)
    return f" In a host's folder models/text_encoders, {files} is found without being named."


def encoders_in_use(
    family: Family, found: Sequence[str], named: Sequence[str], name: str
) -> tuple[list[str], list[str]]:
    """(kinds of the encoders that the model reads, notes).

    Args:
        found: the kinds that there are.
        named: those of them that the user named files for.
        name: the checkpoint's.

    Raises:
        CheckpointError: one is missing, or one was named that the model does not read.
    """
    useless = [kind for kind in named if kind not in family.text.encoders]
    if useless:
        given = " ".join(map(_option, useless))
        read = " and ".join(map(encoder_title, family.text.encoders))
        other = " and no ".join(map(encoder_title, useless))
        raise CheckpointError(
            f"{name} is {family.label}, which reads no {other} but {read}. Leave out {given}."
        )
    wanted = [kind for kind in family.text.encoders if kind in found]
    absent = [kind for kind in family.text.encoders if kind not in found]
    if absent and (family.text.needs_all or not wanted):
        options = [f"{_option(kind)} FILE" for kind in absent if kind in FILES]
        advice = f"give {' '.join(options)}, or use" if options else "use"
        wanting = ("it" if len(absent) == 1 else "all of them") if family.text.needs_all else "one"
        raise CheckpointError(
            f"{name} has no {' and no '.join(map(encoder_title, absent))}. "
            f"{family.label} needs {wanting}: "
            f"{advice} the full checkpoint.{_where_found(family, absent)}"
        )
    if not absent:
        return wanted, []
    names = ", ".join(map(encoder_title, absent))
    return wanted, [f"No {names}: its part of the prompt is zeros, as in ComfyUI."]


def encoder_title(kind: str) -> str:
    """What messages call an encoder of this kind."""
    return TITLES.get(kind, f"{kind} text encoder")


def check_widths(family: Family, config: Config, encoders: Mapping[str, EncoderWidths]) -> None:
    """Refuse encoders that are not those which the denoiser was trained with, as widths tell.

    Those of one group stand side by side.

    Args:
        config: the denoiser's.
        encoders: those in use, by kind.

    Raises:
        CheckpointError: with all widths.
    """
    widths = {kind: encoder.tokens for kind, encoder in encoders.items()}
    context = int(str(config[family.text.context_width]))
    fits = True
    for group in family.text.groups:
        present = [widths[kind] for kind in group.kinds if kind in widths]
        if group.chained and present:
            chain = [encoders[kind] for kind in group.kinds if kind in encoders]
            fits &= present[-1] == context
            fits &= all(b.reads == a.tokens for a, b in pairwise(chain))
        elif present:
            fits &= all(width <= context for width in present)
            total = sum(present)
            fits &= total <= context if group.padded else total == context
    if not fits:
        shown = ", ".join(
            f"{encoder_title(kind)} {item.tokens}"
            + (f" (reads {item.reads})" if item.reads else "")
            for kind, item in encoders.items()
        )
        raise CheckpointError(
            f"The text encoders do not fit the denoiser: widths are {shown}, its text input is "
            f"{context} wide. Give the encoders this model was trained with."
        )
    small, large = encoders.get("clip_l"), encoders.get("clip_g")
    if small and large and small.tokens > large.tokens:
        raise CheckpointError(
            f"CLIP-L and CLIP-G are the wrong way round: {small.label} is given as CLIP-L and is "
            f"{small.tokens} wide, {large.label} as CLIP-G and is {large.tokens} wide. Swap "
            "--clip-l and --clip-g."
        )
    _check_pooled(family, config, encoders)


def _check_pooled(family: Family, config: Config, encoders: Mapping[str, EncoderWidths]) -> None:
    kinds, wanted = family.text.pooled_kinds, family.text.pooled_input(config)
    given = {kind: encoders[kind].pooled for kind in kinds if kind in encoders}
    total = sum(given.values())
    if wanted is None or total == wanted or (len(given) < len(kinds) and total < wanted):
        return
    shown = ", ".join(f"{encoder_title(kind)} {width}" for kind, width in given.items())
    raise CheckpointError(
        f"The text encoders do not fit the denoiser: pooled widths are {shown}, its pooled input "
        f"is {wanted} wide. Give the encoders this model was trained with."
    )
