"""Whether the LoRAs that were merged into a student's teacher are there when it is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from .recipe import MergedLora, Recipe

SAME_STRENGTH = 1e-6


@dataclass(frozen=True)
class PresentLora:
    """A LoRA that is on while sampling.

    Args:
        name: its file's name.
        sha256: of the file, "" where it is not known.
        autov3: first twelve digits of the SHA256 of its tensors, "" where it is not known.
    """

    name: str
    strength: float
    sha256: str = ""
    autov3: str = ""


def merged_lora_notes(
    recipe: Recipe | None, present: Sequence[PresentLora], *, how: str = ""
) -> list[str]:
    """What a person should know of the LoRAs that the recipe names, a sentence or two each.

    One that the student's file does not include and that is absent, or there at another strength;
    one that is included and there once more. Hashes decide; names only where a side has none.

    Args:
        how: how LoRAs are added here, such as " with --with-lora".
    """
    notes = []
    for lora in recipe.merged_loras if recipe else ():
        found = next((item for item in present if _same(lora, item)), None)
        checksum = f" (SHA256 {lora.sha256[:10]}...)" if lora.sha256 else ""
        title = f"{lora.name}{checksum}"
        if lora.included and found is not None:
            notes.append(f"This LoRA contains {title} already; leave it out, or it acts twice.")
        elif not lora.included and found is None:
            notes.append(
                f"This LoRA was made for a checkpoint with {title} merged at {lora.strength:g}. It "
                f"is missing here: add it{how} at that strength, unless this checkpoint has it."
            )
        elif found is not None and abs(found.strength - lora.strength) > SAME_STRENGTH:
            notes.append(
                f"{title} is on at {found.strength:g}; this LoRA was made for {lora.strength:g}."
            )
    return notes


def _same(lora: MergedLora, present: PresentLora) -> bool:
    """Whether they are one file, or two with the same tensors (hosts edit metadata)."""
    pairs = ((lora.sha256, present.sha256), (lora.autov3, present.autov3))
    known = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    if known:
        return any(ours == theirs.lower() for ours, theirs in known)
    return PurePath(lora.name).stem.lower() == PurePath(present.name).stem.lower()
