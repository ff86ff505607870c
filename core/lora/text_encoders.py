"""The text-encoder part of a LoRA file: which module of which encoder each pair belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import LoraError
from ..families import FAMILIES, Family, TensorSource, encoder_folders
from ..families.lora_names import split_suffix
from .file import Deltas, LoraFile, module_deltas
from .keys import LoraModule, add_key, plain_name
from .targets import Target

# lora_te_, lora_te1_, te2., text_encoder., text_encoder_3. and the like: encoders by number
NUMBERED = re.compile(r"(?:lora_)?(?:te|text_encoder)_?([123]?)[._]")
# text_encoders.clip_l.transformer. (their place in an SD3 checkpoint), and OMI's clip_l., t5.
NAMED = r"(?:text_encoders[._])?({kinds})[._](?:transformer[._])?"
OMI_KINDS = {"t5": "t5xxl"}
PROJECTION = "text_projection"
OUTER = "text_model_"  # transformers' CLIP classes differ in whether their names begin with it


@dataclass(frozen=True)
class EncoderPart:
    """The part of a LoRA file that changes one text encoder.

    Attributes:
        encoder: diffusers' name of the encoder.
        modules: of the file, by plain name.
    """

    lora: LoraFile
    encoder: str
    modules: dict[str, LoraModule]

    def deltas(self, shapes: Mapping[str, torch.Size], strength: float = 1.0) -> Deltas:
        """What it adds to each module of the encoder, strength in `scale`.

        Args:
            shapes: shape of the weight of every module of the encoder, by transformers' name.

        Raises:
            LoraError: the encoder lacks a module, or has another size.
        """
        targets = {plain_encoder_name(name): [Target(name, TensorSource(name))] for name in shapes}
        unread = self.unread(shapes)
        modules = {name: item for name, item in self.modules.items() if item not in unread}
        found = Deltas(self.lora, shapes, strength, self.encoder)
        return module_deltas(found, modules, targets) if modules else found

    def unread(self, shapes: Mapping[str, torch.Size]) -> list[LoraModule]:
        """Its modules that change nothing, as the encoder is read without them.

        A projection may be trained behind an encoder whose pooled vector goes round it (CLIP-L in
        SDXL and SD3); hosts leave it out, too.
        """
        read = any(plain_encoder_name(name) == PROJECTION for name in shapes)
        return [item for name, item in self.modules.items() if name == PROJECTION and not read]


def text_encoder_parts(lora: LoraFile, family: Family) -> dict[str, EncoderPart]:
    """What the file holds for each text encoder, by kind ("clip_l", "clip_g", "t5xxl").

    Raises:
        LoraError: a key is for an encoder that the family does not have.
    """
    found: dict[str, dict[str, LoraModule]] = {kind: {} for kind in family.text.encoders}
    for key in lora.text_encoder_keys:
        stem, part, _ = split_suffix(key)
        kind, module = _place(stem, family)
        if kind is None:
            raise LoraError(
                f"{lora.path.name} changes a text encoder that {family.label} does not have "
                f"({key!r}). It was made for another model."
            )
        add_key(found[kind], plain_encoder_name(module), part, key, lora.path.name)
    names = encoder_folders(family)
    return {k: EncoderPart(lora, names[k], modules) for k, modules in found.items() if modules}


def _place(stem: str, family: Family) -> tuple[str | None, str]:
    """(encoder or None if the family has none such, module as written) of a key without ending.

    Raises:
        LoraError: the family has several encoders, and the key is for any of them.
    """
    stem = stem.removeprefix("base_model.model.")
    if re.match(r"text_model[._]", stem):  # one encoder's adapter, saved by itself
        if len(family.text.encoders) > 1:
            raise LoraError(
                f"The LoRA does not say which of the text encoders of {family.label} it is for "
                f"({stem!r}). Rename its tensors: put text_encoder. or text_encoder_2. in front."
            )
        return next(iter(family.text.encoders)), stem
    every = sorted({kind for item in FAMILIES for kind in item.text.encoders} | {*OMI_KINDS})
    if match := re.match(NAMED.format(kinds="|".join(every)), stem):
        kind = OMI_KINDS.get(match[1], match[1])
        return kind if kind in family.text.encoders else None, stem[match.end() :]
    if match := NUMBERED.match(stem):
        number = int(match[1] or 1)
        known = number <= len(family.text.encoders)
        return family.text.encoders[number - 1] if known else None, stem[match.end() :]
    return None, stem


def plain_encoder_name(module: str) -> str:
    """A text encoder's module with underscores for dots, without the outermost `text_model`."""
    return plain_name(module).removeprefix(OUTER)
