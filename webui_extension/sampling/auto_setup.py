"""What a prompt's few-step LoRAs ask for: the settings they are made for, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import DPDMDError
from ...core.recipe.anchored import GUIDED, ONE_PLAIN
from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import Asked, LoraFacts, ModelFacts, kind_note, resolve
from .generation import WORDS

TAG = re.compile(r"<lora:([^:>]+)((?::[^>]*)?)>", re.IGNORECASE)
FROM_FILE = "what the LoRA says"
OFF = "off"
ANCHORS = (OFF, GUIDED, ONE_PLAIN)
Reader = Callable[[Path], LoraFacts]
Finder = Callable[[str], Path | None]


@dataclass(frozen=True)
class Choices:
    """What the accordion says.

    Attributes:
        enabled: whether settings are taken from the LoRA.
        kind: one of the known few-step LoRAs of other makers, or "" for a recipe in the file.
        lora: the name of that other maker's LoRA; may stay empty if the prompt has only one.
        anchor: who samples the first part of the trajectory: "off" is the LoRA as usual.
        anchor_steps: guided steps of the base model; 0 as in training.
        base_guidance: guidance of the base model; 0 the teacher's.
        attention: one of `attention.CHOICES`.
    """

    enabled: bool = True
    kind: str = ""
    lora: str = ""
    anchor: str = OFF
    anchor_steps: int = 0
    base_guidance: float = 0.0
    attention: str = "the host's"


@dataclass(frozen=True)
class Setup:
    """What to do for a prompt.

    Attributes:
        recipe: what to sample by; None leaves everything as the user set it.
        loras: names of the few-step LoRAs in the prompt.
        notes: what the user has to know.
    """

    recipe: Recipe | None = None
    loras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def names(self) -> str:
        """The few-step LoRAs in one phrase."""
        return " and ".join(self.loras)

    def settings(self) -> str:
        """What is set beside the sampler; empty where nothing is."""
        if self.recipe is None:
            return ""
        kind = ", re-noising" if self.recipe.solver == "sde" else ""
        return f"{self.recipe.num_steps} steps, CFG {self.recipe.guidance_scale:g}{kind}"

    def describe(self) -> str:
        """One line for the infotext; empty where nothing was set."""
        return f"{self.names()}: {self.settings()}" if self.recipe is not None else ""


def tags(prompt: str) -> list[LoraFacts]:
    """The LoRAs of a prompt in their order, each once: names, and strengths for the denoiser."""
    found: dict[str, LoraFacts] = {}
    for name, rest in TAG.findall(prompt):
        found.setdefault(name, LoraFacts(name, strength=_strength(rest)))
    return list(found.values())


def _strength(rest: str) -> float:
    """The denoiser's strength in ":1", ":1:.5" or ":te=1:unet=.5"; 1 where it is unreadable."""
    parts = [part.strip() for part in rest.split(":")[1:]]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    text = named.get("unet") or (plain[1] if len(plain) > 1 else None)
    text = text or named.get("te") or (plain[0] if plain else "1")
    try:
        return float(text)
    except ValueError:
        return 1.0


def look(
    prompts: Sequence[str],
    facts: ModelFacts | None,
    choices: Choices,
    *,
    read: Reader,
    find: Finder,
) -> Setup:
    """What the few-step LoRAs in some prompts ask for.

    Args:
        facts: of the checkpoint, None while none is loaded.
        read: what a file says of itself.
        find: the file of a name.
    """
    every = tags("\n".join(prompts))
    if choices.kind:
        named = [tag for tag in every if tag.name == choices.lora] if choices.lora else every
        if len(named) != 1:
            there = ", ".join(tag.name for tag in every) or "none"
            return Setup(
                notes=(
                    f"Which LoRA of the prompt is the {choices.kind} one? Write its name into the "
                    f"box; found: {there}.",
                )
            )
        found, notes = named, []
    else:
        found, notes = _read(every, read, find)
        if all(lora.recipe is None for lora in found):
            return Setup(notes=(*notes, *(kind_note(lora, WORDS) for lora in found)))
    names = tuple(lora.name for lora in found)
    try:
        resolved = resolve(facts, found, Asked(choices.kind), WORDS)
    except DPDMDError as error:
        return Setup(None, names[:1], (*notes, str(error)))
    return Setup(resolved.recipe, names, (*notes, *resolved.notes))


def _read(every: list[LoraFacts], read: Reader, find: Finder) -> tuple[list[LoraFacts], list[str]]:
    """(the few-step LoRAs among those of a prompt, what is wrong with the files of others)."""
    found, notes = [], []
    for tag in every:
        path = find(tag.name)
        try:
            lora = read(path) if path is not None else LoraFacts()
        except DPDMDError as error:
            notes.append(f"{tag.name}: {error}")
            continue
        if lora.recipe is not None or lora.kind:
            found.append(replace(lora, name=tag.name, strength=tag.strength))
    return found, notes
