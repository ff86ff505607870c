"""Which text encoder, and which module of it, a LoRA's key speaks of; told by names alone.

No torch: `inspect` asks this, too, where a file's family is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import LoraError
from ..families import FAMILIES, Family
from ..families.lora_names import split_suffix
from .keys import LoraModule, add_key, plain_name

# lora_te_, lora_te1_, te2., text_encoder., text_encoder_3. and the like: encoders by number
NUMBERED = re.compile(r"(?:lora_)?(?:te|text_encoder)_?([123]?)[._]")
# text_encoders.clip_l.transformer. (their place in an SD3 checkpoint), and OMI's clip_l., t5.
NAMED = r"(?:text_encoders[._])?({kinds})[._](?:transformer[._])?"
OTHER_KINDS = {"t5": "t5xxl", "qwen3_06b": "qwen3", "qwen3_4b": "qwen3"}
"""Kinds by what OMI, and by what ComfyUI calls them."""
ADAPTER = re.compile(
    r"(?:(?:lora_unet_|lycoris_|(?:model\.)?diffusion_model\.)?llm_adapter|text_conditioner)[._]"
)
"""It lies in the denoiser's file, and diffusers has it as a model of its own."""
# whether names begin with it differs: between transformers' CLIP classes, and of language models
OUTER = re.compile(r"^(text_model_|model_(?=layers_|embed_tokens|norm$))")
OPENCLIP = re.compile(r"^(model_)?(transformer_)?(?=resblocks_)")


def encoder_modules(
    keys: Iterable[str], family: Family, file_name: str
) -> dict[str, dict[str, LoraModule]]:
    """The modules of each text encoder by plain name; of every kind that the family has.

    Args:
        keys: the file's tensors for text encoders.

    Raises:
        LoraError: a key is for an encoder that the family does not have, or for any of several;
            two tensors are for one place.
    """
    found: dict[str, dict[str, LoraModule]] = {kind: {} for kind in family.text.encoders}
    for key in keys:
        stem, part, _ = split_suffix(key)
        kind, module = _place(stem, family, file_name)
        if kind is None:
            raise LoraError(
                f"{file_name} changes a text encoder that {family.label} does not have ({key!r}). "
                "It was made for another model."
            )
        add_key(found[kind], plain_encoder_name(module), part, key, file_name)
    return found


def _place(stem: str, family: Family, file_name: str) -> tuple[str | None, str]:
    """(encoder or None if the family has none such, module as written) of a key without ending."""
    stem = stem.removeprefix("base_model.model.")
    if re.match(r"text_model[._]|(transformer\.)?resblocks\.", stem):  # one encoder's, by itself
        if len(family.text.encoders) > 1:
            raise LoraError(
                f"{file_name} does not say which of the text encoders of {family.label} it is for "
                f"({stem!r}). Rename its tensors: put text_encoder. or text_encoder_2. in front."
            )
        return next(iter(family.text.encoders)), stem
    if match := ADAPTER.match(stem):
        kind = "llm_adapter"
        return kind if kind in family.text.encoders else None, stem[match.end() :]
    kinds = {kind for item in FAMILIES for kind in item.text.encoders} | {*OTHER_KINDS}
    every = sorted(kinds, reverse=True)  # of two that begin alike the longer one first
    if match := re.match(NAMED.format(kinds="|".join(every)), stem):
        kind = OTHER_KINDS.get(match[1], match[1])
        return kind if kind in family.text.encoders else None, stem[match.end() :]
    if match := NUMBERED.match(stem):
        number = int(match[1] or 1)
        known = number <= len(family.text.encoders)
        return family.text.encoders[number - 1] if known else None, stem[match.end() :]
    return None, stem


def plain_encoder_name(module: str) -> str:
    """A text encoder's module with underscores for dots, without what names may begin with."""
    return OPENCLIP.sub("", OUTER.sub("", plain_name(module)))
