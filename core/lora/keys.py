"""Reading LoRA key names of any trainer: which module, which half, which family. No torch.

Trainers name one module in many ways: kohya writes `lora_unet_` and the host's name with
underscores, PEFT the diffusers name after `unet.` or `transformer.`, others the checkpoint's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import LoraError, UnsupportedLoraError
from ..families import FAMILIES
from ..families.base import LoraFacts
from ..families.lora_names import other_kind, split_suffix
from ..families.unsupported import QUANTISED_KEY

TEXT_ENCODER = re.compile(
    r"^(base_model\.model\.)?(lora_te\d?_|text_encoders?[._\d]|lora_prior_te_|te\d?[._]"
    r"|clip_[lgh][._]|t5(xxl)?[._]|text_model[._]|(transformer\.)?resblocks\."
    r"|(lora_unet_|lycoris_|(model\.)?diffusion_model\.)?llm_adapter[._]|text_conditioner[._])"
)
"""An adapter behind an encoder counts as one, wherever its tensors lie."""
PREFIXES = (
    "base_model.model.", "lora_transformer_", "lora_unet_", "lycoris_",
    "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "module.",
)  # fmt: skip
# torch.compile puts this into the names of what it wraps.
COMPILED = ("_orig_mod.", "_orig_mod_")
EMBEDDING_KEYS = {"emb_params", "string_to_param.*", "clip_l", "clip_g", "t5", "t5xxl"}
OTHER_FAMILIES = {
    "AuraFlow": r"joint_transformer_blocks",
    "Cosmos-Predict1": r"blocks[._]block\d+[._]",
    "Flux": r"single_transformer_blocks|single_blocks|double_blocks",
    "HunyuanVideo": r"img_attn_qkv|txt_attn_qkv",
    # attention alone has SD3's names, but no SD3 has so many blocks
    "Qwen-Image": (
        r"transformer_blocks[._]\d+[._]img_m(lp|od)"
        r"|(?m:^transformer_blocks_(3[89]|[45]\d)_attn_(to|add)_)"
    ),
    "Stable Cascade": r"lora_prior_unet_",
    "Wan": r"blocks[._]\d+[._](cross_attn|self_attn)[._](?!\w+_proj)",
    "PixArt": r"adaln_single|caption_projection",
}
OTHER_WIDTHS = {1024: "Stable Diffusion 2"}


DIFFERENCES = {"weight": "diff", "bias": "diff_b"}
"""Parts that are added as they are, by the module's parameter that each changes."""


@dataclass
class LoraModule:
    """The tensors of one module in the file: part -> key.

    Parts: "alpha"; "down", "up" and "mid" of a LoRA; "hada_w1_a" and so on of a LoHa or LoKr;
    "diff" and "diff_b", the whole changes of a weight and of a bias.
    """

    name: str
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def low_rank(self) -> list[str]:
        """The parts, alpha apart, that are factors of a product."""
        whole = ("alpha", *DIFFERENCES.values())
        return [part for part in self.keys if part not in whole]

    @property
    def parameters(self) -> list[str]:
        """Which of the module's "weight" and "bias" it changes."""
        found = [name for name, part in DIFFERENCES.items() if part in self.keys]
        return ["weight", *found] if self.low_rank else found


def group_keys(
    keys: Iterable[str], file_name: str
) -> tuple[dict[str, LoraModule], dict[str, LoraModule], list[str]]:
    """Modules of the denoiser by plain name, those of text encoders as written, these' keys.

    A plain name has no prefix and underscores for dots, so that all ways of writing meet.

    Raises:
        LoraError: two tensors are for one place, or none is part of a pair.
        UnsupportedLoraError: of a kind that is not handled.
    """
    keys = list(keys)
    split = {key: split_suffix(key) for key in keys}
    _refuse_several({adapter: key for key, (_, _, adapter) in split.items() if adapter}, file_name)
    modules: dict[str, LoraModule] = {}
    encoder_modules: dict[str, LoraModule] = {}
    for key, (stem, part, _) in split.items():
        if not part:
            continue
        if TEXT_ENCODER.match(key):
            add_key(encoder_modules, stem, part, key, file_name)
        else:
            add_key(modules, plain_name(stem), part, key, file_name)
    unknown = [key for key, (_, part, _) in split.items() if not part]
    refuse_unknown(unknown, bool(modules or encoder_modules), file_name)
    return modules, encoder_modules, [key for key in keys if TEXT_ENCODER.match(key)]


def _refuse_several(adapters: Mapping[str, str], file_name: str) -> None:
    """LoraError if a file holds more than one of PEFT's adapters; `adapters`: a key of each."""
    if len(adapters) > 1:
        keys = " and ".join(map(repr, list(adapters.values())[:2]))
        raise LoraError(
            f"{file_name} holds {len(adapters)} adapters of different names ({keys}), and nothing "
            "says which of them are in force. Save one of them as a file of its own."
        )


def add_key(modules: dict[str, LoraModule], name: str, part: str, key: str, file_name: str) -> None:
    """Note a key as one part of the module `name`; LoraError if that part was named before."""
    module = modules.setdefault(name, LoraModule(name))
    if part in module.keys:
        raise LoraError(
            f"{file_name} has two tensors for one place, {module.keys[part]!r} and {key!r}. It was "
            "joined from two files; take the original."
        )
    module.keys[part] = key


def plain_name(module: str) -> str:
    """A module's name without trainer prefixes and with underscores for dots."""
    for layer in COMPILED:
        module = module.replace(layer, "")
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if module.startswith(prefix):
                module, changed = module[len(prefix) :], True
    return module.replace(".processor.", ".").replace(".", "_")


def adapter_alpha(
    metadata: Mapping[str, str], file_name: str, text_encoder: str = ""
) -> float | None:
    """lora_alpha out of the metadata of a file that diffusers wrote; None where it says nothing.

    Such files carry it nowhere else, and their scale is alpha / rank.

    Args:
        text_encoder: the encoder whose alpha is asked for ("text_encoder_2"); "": the denoiser's.

    Raises:
        LoraError: the metadata is damaged, or states several alphas.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    try:
        facts = {}
        for name, value in json.loads(text).items():
            component, _, field_name = name.rpartition(".")
            is_encoder = component.startswith("text_encoder")
            if component == text_encoder if text_encoder else not is_encoder:
                facts[field_name] = value
        alpha = facts.get("lora_alpha")
        several = facts.get("alpha_pattern") or facts.get("use_rslora")
        found = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoraError(f"{file_name}: its lora_adapter_metadata is damaged ({error}).") from error
    if several or (found is not None and not 0 < found < 1e6):
        raise LoraError(
            f"{file_name} was written with rank-stabilised, several, or impossible alphas, which "
            "are not handled here. Convert it to kohya's format, which states each."
        )
    return found


def refuse_unknown(unknown: list[str], has_pairs: bool, file_name: str) -> None:
    """UnsupportedLoraError or LoraError naming what these keys are, if there are any."""
    for key in unknown:
        kind = other_kind(key)
        if kind:
            raise UnsupportedLoraError(
                f"{file_name} is of kind {kind} ({key!r}), which is not handled here. "
                "LoRA, LoCon, LoHa, LoKr and full differences are."
            )
        if QUANTISED_KEY.search(key):
            raise UnsupportedLoraError(
                f"{file_name} holds quantised weights with separate scales (scaled fp8 or the "
                f"like: {key!r}), which are not handled here. Use its fp16, bf16, fp32 or plain "
                "fp8 version."
            )
    if unknown and not has_pairs:
        raise LoraError(
            f"{file_name} is not a LoRA: none of its {len(unknown)} tensors is one half of a "
            f"low-rank pair (the first is {unknown[0]!r}). {_advice(unknown)}"
        )
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UnsupportedLoraError(
            f"{file_name} holds {len(unknown)} tensors that are no part of a LoRA: {shown}. "
            "It may be damaged, or of a kind that is not handled here."
        )


def _advice(unknown: list[str]) -> str:
    if EMBEDDING_KEYS.issuperset(unknown):
        return "It is an embedding (textual inversion): put it into the host's embeddings folder."
    return "If it is a checkpoint, give it as the model."


def detect_family(modules: Mapping[str, LoraModule], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The family a LoRA's names and shapes tell of: one of ours, another's name, or "".

    Args:
        modules: what `group_keys` found.
        shapes: shape of each tensor by key.
    """
    names = "\n".join(modules)
    for other, pattern in OTHER_FAMILIES.items():
        if re.search(pattern, names):
            return other
    return (
        _by_names(names, lambda lora: lora.names)
        or _by_width(modules, shapes)
        or _by_names(names, lambda lora: lora.likely_names)
    )


def _by_names(names: str, pattern_of: Callable[[LoraFacts], str]) -> str:
    """The first family whose pattern one of the names (a line each) has; "" for none."""
    for item in FAMILIES:
        pattern = pattern_of(item.lora)
        if pattern and re.search(pattern, names, re.MULTILINE):
            return item.name
    return ""


def _by_width(modules: Mapping[str, LoraModule], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The family whose cross-attention has the text width that is found here; "" for none."""
    widths = OTHER_WIDTHS | {item.lora.context_width: item.name for item in FAMILIES}
    for name, module in modules.items():
        if name.endswith(("attn2_to_k", "attn2_to_v")):
            width = _input_width(module, shapes)
            if width and width in widths:
                return widths[width]
    return ""


def _input_width(module: LoraModule, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Inputs of a linear layer; 0 where the module's tensors do not tell."""

    def columns(*parts: str) -> int:
        sizes = [shapes[module.keys[part]] for part in parts if part in module.keys]
        return sizes[0][1] if sizes and len(sizes[0]) > 1 else 0

    kronecker = columns("lokr_w1", "lokr_w1_b") * columns("lokr_w2", "lokr_w2_b")
    return columns("down", "hada_w1_b", "diff") or kronecker
