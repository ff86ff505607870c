"""LoRAs that are merged into a checkpoint as it is loaded: denoiser and text encoders alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import LoraError
from ...core.families import Family
from ...core.files.hashes import file_hashes
from ...core.files.png_info import UsedLora
from ...core.lora.contents import check_family
from ...core.lora.file import LoraFile, lora_deltas, open_lora
from ...core.lora.text_encoders import EncoderPart, text_encoder_parts
from ...core.recipe.merged_loras import PresentLora
from .encoders import encoder_title
from .weights import Component

SHOWN = 3
WITH_LORA = " with --with-lora"


@dataclass(frozen=True)
class MergingLora:
    """A LoRA file and the strength it is merged at."""

    file: LoraFile
    strength: float
    sha256: str
    autov3: str

    @property
    def name(self) -> str:
        """The file's name; letters that cannot be shown are question marks."""
        return "".join(c if c.isprintable() else "?" for c in self.file.path.name)

    def present(self) -> PresentLora:
        """The LoRA as one that is in force while sampling."""
        return PresentLora(self.name, self.strength, self.sha256, self.autov3)

    def used(self) -> UsedLora:
        """The LoRA as an image's text names it."""
        return UsedLora(name=self.file.path.stem, strength=self.strength, autov3=self.autov3)


def open_merging(path: Path, strength: float) -> MergingLora:
    """The LoRA file at `path`, with its hashes.

    Raises:
        LoraError: it is missing, no LoRA, or of a kind that is not handled.
    """
    file = open_lora(path)
    hashes = file_hashes(path)
    return MergingLora(file, strength, hashes.sha256, hashes.autov3)


def plan_merge(
    loras: Sequence[MergingLora],
    denoiser: Component,
    encoders: Mapping[str, Component],
    family: Family,
) -> list[str]:
    """Enter the LoRAs into the components' updates; says what was merged, a line per LoRA.

    Raises:
        LoraError: one is of another family, fits nothing, or holds what no layer here fits.
        NonFiniteError: a weight is NaN or infinite.
    """
    notes = []
    for lora in loras:
        check_family(lora.file.contents, family)
        changed = []
        if lora.file.modules:
            shapes = denoiser.parameter_shapes
            deltas = lora_deltas(lora.file, family, denoiser.config, shapes, lora.strength)
            denoiser.updates.add(deltas, lora.sha256, lora.strength)
            changed.append(f"{deltas.layers} layers of the {denoiser.what}")
        unused, unread = {}, []
        for kind, part in text_encoder_parts(lora.file, family).items():
            if kind not in encoders:
                unused[kind] = part
                continue
            encoder = encoders[kind]
            deltas = part.deltas(encoder.parameter_shapes, lora.strength)
            encoder.updates.add(deltas, lora.sha256, lora.strength)
            if deltas:
                changed.append(f"{deltas.layers} layers of the {encoder.what}")
            if part.unread(encoder.parameter_shapes):
                unread.append(encoder.what)
        notes.append(_note(lora, changed, unused, unread))
    return notes


def _note(
    lora: MergingLora, changed: list[str], unused: Mapping[str, EncoderPart], unread: list[str]
) -> str:
    """What was merged, and what was not.

    Args:
        unused: parts for encoders that the checkpoint does not have, by kind.
        unread: encoders whose projection it changes, though they are read without one.
    """
    entries = [module for part in unused.values() for module in part.modules.values()]
    keys = [key for entry in entries for key in entry.keys.values()]
    absent = " and no ".join(encoder_title(kind) for kind in unused)
    if not changed and not keys:
        raise LoraError(
            f"{lora.name} changes nothing here: it holds the projection of the {unread[0]} alone, "
            "which is read without one. Leave the LoRA out."
        )
    if not changed:
        raise LoraError(
            f"{lora.name} changes nothing here: all its {len(keys)} tensors are for text encoders, "
            f"and the checkpoint has no {absent}. Give the encoder's file, or leave the LoRA out."
        )
    note = f"Merged {lora.name} at strength {lora.strength:g}: {', '.join(changed)}."
    left = [lora.file.contents.embedding_note()]
    if unread:
        left.append(
            f"Its change of text_projection is not used: the {' and the '.join(unread)} is read "
            "without one, here as in hosts."
        )
    if keys:
        shown = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
        left.append(f"{len(keys)} of its tensors are not used, as there is no {absent}: {shown}.")
    said = [text for text in left if text] or ["All its tensors are used."]
    return " ".join([note, *said])
