"""The text-encoder part of a LoRA file: which parameter of which encoder each update belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..families import Family, TensorSource, encoder_folders
from ..families.parts.encoder_layout import T5_EMBEDDINGS, openclip_place
from .encoder_names import encoder_modules, plain_encoder_name
from .file import Deltas, LoraFile, module_deltas
from .keys import LoraModule
from .targets import Target, modules_of

PROJECTION = "text_projection"


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
        """What it adds to each parameter of the encoder, strength in `scale`.

        Args:
            shapes: shape of every parameter of the encoder, by transformers' name.

        Raises:
            LoraError: the encoder lacks a module, or has another size.
        """
        unread = self.unread(shapes)
        modules = {name: item for name, item in self.modules.items() if item not in unread}
        found = Deltas(self.lora, shapes, strength, self.encoder)
        return module_deltas(found, modules, _targets(shapes)) if modules else found

    def unread(self, shapes: Mapping[str, torch.Size]) -> list[LoraModule]:
        """Its modules that change nothing, as the encoder is read without them.

        A projection may be trained behind an encoder whose pooled vector goes round it (CLIP-L in
        SDXL and SD3); hosts leave it out, too.
        """
        read = any(plain_encoder_name(name) == PROJECTION for name in modules_of(shapes))
        return [item for name, item in self.modules.items() if name == PROJECTION and not read]


def text_encoder_parts(lora: LoraFile, family: Family) -> dict[str, EncoderPart]:
    """What the file holds for each text encoder, by kind ("clip_l", "clip_g", "t5xxl").

    Raises:
        LoraError: as `encoder_modules`.
    """
    found = encoder_modules(lora.text_encoder_keys, family, lora.path.name)
    names = encoder_folders(family)
    return {k: EncoderPart(lora, names[k], modules) for k, modules in found.items() if modules}


def _targets(shapes: Mapping[str, torch.Size]) -> dict[str, list[Target]]:
    """Targets of every plain name: transformers' and, of a CLIP, OpenCLIP's with q, k, v in one."""
    found = {plain_encoder_name(m): [Target(m, TensorSource(m))] for m in modules_of(shapes)}
    tied = [name.removesuffix(".weight") for name in T5_EMBEDDINGS if name in shapes]
    for name in tied:  # two names of one table
        found[plain_encoder_name(name)] = [Target(other, TensorSource(other)) for other in tied]
    for module in modules_of(shapes):
        try:
            source = openclip_place(f"{module}.weight")
        except ValueError:
            continue  # not of a CLIP
        stored = plain_encoder_name(source.key.removesuffix(".weight"))
        attention = stored.removesuffix("_in_proj_weight")
        names = [stored]
        if attention != stored:  # without an ending, and as PEFT calls torch's own layer
            names += [f"{attention}_in_proj", attention]
        elif stored.endswith("_attn_out_proj"):
            names.append(stored.replace("_attn_out_proj", "_attn_base_layer_out_proj"))
        for name in names:
            found.setdefault(name, []).append(Target(module, source))
    return found
