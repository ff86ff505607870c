"""The text-encoder part of a LoRA file: which module of which encoder each pair belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..errors import LoraError
from ..families import FAMILIES, Family, TensorSource
from .file import LoraFile, module_deltas
from .keys import LoraModule, add_key, refuse_unknown, split_suffix
from .math import LoraPair
from .targets import Target

# lora_te_, lora_te1_, te2., text_encoder., text_encoder_3. and the like: encoders by number
NUMBERED = re.compile(r"(?:lora_)?(?:te|text_encoder)_?([123]?)[._]")
# text_encoders.clip_l.transformer.: encoders by their place in an SD3 checkpoint
NAMED = r"text_encoders[._]({kinds})[._](?:transformer[._])?"
DIFFUSERS_NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3")
OUTER = "text_model_"  # transformers' CLIP classes differ in whether their names begin with it


def text_encoder_modules(lora: LoraFile, family: Family) -> dict[str, dict[str, LoraModule]]:
    """Modules of each text encoder by plain name, encoders in the family's order.

    Raises:
        LoraError: a key is no part of a pair, or of an encoder that the family does not have.
    """
    found: dict[str, dict[str, LoraModule]] = {kind: {} for kind in family.text.encoders}
    unknown = []
    for key in lora.text_encoder_keys:
        stem, part = split_suffix(key)
        kind, module = _place(stem, family)
        if not part or not module:
            unknown.append(key)
            continue
        if kind is None:
            raise LoraError(
                f"{lora.path.name} changes a text encoder that {family.label} does not have "
                f"({key!r}). It was made for another model."
            )
        add_key(found[kind], plain_encoder_name(module), part, key, lora.path.name)
    refuse_unknown(unknown, len(unknown) < len(lora.text_encoder_keys), lora.path.name)
    return {kind: modules for kind, modules in found.items() if modules}


def _place(stem: str, family: Family) -> tuple[str | None, str]:
    """(encoder or None, module as written) of a key without its ending; "" if not understood."""
    every = sorted({kind for item in FAMILIES for kind in item.text.encoders})
    if match := re.match(NAMED.format(kinds="|".join(every)), stem):
        named: list[str] = [kind for kind in family.text.encoders if kind == match[1]]
        return named[0] if named else None, stem[match.end() :]
    if match := NUMBERED.match(stem):
        number = int(match[1] or 1)
        known = number <= len(family.text.encoders)
        return family.text.encoders[number - 1] if known else None, stem[match.end() :]
    return None, ""


def plain_encoder_name(module: str) -> str:
    """A text encoder's module with underscores for dots, without the outermost `text_model`."""
    return module.replace(".", "_").removeprefix(OUTER)


def text_encoder_deltas(
    lora: LoraFile,
    kind: str,
    modules: Mapping[str, LoraModule],
    family: Family,
    shapes: Mapping[str, torch.Size],
    strength: float = 1.0,
) -> Mapping[str, LoraPair]:
    """What the LoRA adds to each module of one text encoder, strength in `scale`.

    Args:
        kind: "clip_l", "clip_g" or "t5xxl".
        modules: what `text_encoder_modules` found for it.
        shapes: shape of the weight of every module of the encoder, by transformers' name.

    Raises:
        LoraError: the encoder lacks a module, or has another size.
    """
    targets = {plain_encoder_name(name): [Target(name, TensorSource(name))] for name in shapes}
    name = DIFFUSERS_NAMES[family.text.encoders.index(kind)]
    return module_deltas(lora, modules, targets, shapes, strength, name)
