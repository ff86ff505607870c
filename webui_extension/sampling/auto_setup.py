"""What a prompt's few-step LoRAs ask for: the settings they are made for, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...app.library.choices import is_demo
from ...core.errors import DPDMDError
from ...core.recipe.anchored import GUIDED, ONE_PLAIN
from ...core.recipe.merged_loras import PresentLora, merged_lora_notes
from ...core.recipe.recipe import Recipe, used_clip_skip
from ...core.recipe.resolve import Asked, LoraFacts, ModelFacts, kind_note, resolve
from ..host.loras import Lora
from .generation import WORDS

TAG = re.compile(r"<lora:([^:>]+)((?::[^>]*)?)>", re.IGNORECASE)
FROM_FILE = "what the LoRA says"
OFF = "off"
ANCHORS = (OFF, GUIDED, ONE_PLAIN)
Reader = Callable[[Path], LoraFacts]
Finder = Callable[[str], Lora | None]
DEMO_LORA = (
    "{} was distilled from a demo checkpoint, which this web UI cannot load, and fits no other: "
    "draw with it on the page Compare of the tab DP-DMD."
)
FAR = 1.6
"""An image of this many times a trained size's pixels, or of so much less, is far from it."""


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
        steps: of the few-step LoRA; 0 its own.
    """

    enabled: bool = True
    kind: str = ""
    lora: str = ""
    anchor: str = OFF
    anchor_steps: int = 0
    base_guidance: float = 0.0
    attention: str = "the host's"
    steps: int = 0


@dataclass(frozen=True)
class Setup:
    """What to do for a prompt.

    Attributes:
        recipe: what to sample by; None leaves everything as the user set it.
        loras: names of the few-step LoRAs in the prompt.
        notes: what the user has to know.
        steps: to take; 0 where nothing is set.
        offered: the kind that a LoRA without a recipe seems to be, "" for none.
    """

    recipe: Recipe | None = None
    loras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: int = 0
    offered: str = ""

    def names(self) -> str:
        """The few-step LoRAs in one phrase."""
        return " and ".join(self.loras)

    def settings(self) -> str:
        """What is set beside the sampler; empty where nothing is."""
        if self.recipe is None:
            return ""
        kind = ", re-noising" if self.recipe.solver == "sde" else ""
        skip = used_clip_skip(self.recipe)
        clip = f", clip skip {skip}" if skip is not None and skip > 1 else ""
        return f"{self.steps} steps, CFG {self.recipe.guidance_scale:g}{kind}{clip}"

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
    off = [lora.name for lora in found if lora.strength == 0 and _is_few_step(lora, choices)]
    notes += [f"{name} is at strength 0, so it does nothing." for name in off]
    found = [lora for lora in found if lora.strength != 0]
    if not choices.kind:
        if all(lora.recipe is None for lora in found):
            offered = next((lora.kind or lora.likely for lora in found), "")
            advice = (kind_note(lora, WORDS) for lora in found)
            return Setup(notes=(*notes, *advice), offered=offered)
        found = [lora for lora in found if lora.recipe is not None or lora.kind]
    if not found:
        return Setup(notes=tuple(notes))
    names = tuple(lora.name for lora in found)
    try:
        resolved = resolve(facts, found, Asked(choices.kind, choices.steps), WORDS)
    except DPDMDError as error:
        return Setup(None, names[:1], (*notes, str(error)))
    merged = merged_lora_notes(resolved.recipe, _others(every, names, find), how=" to the prompt")
    demos = [DEMO_LORA.format(lora.name) for lora in found if _is_of_a_demo(lora)]
    notes = [*notes, *demos, *resolved.notes, *merged]
    return Setup(resolved.recipe, names, tuple(notes), resolved.plan.num_steps)


def _is_of_a_demo(lora: LoraFacts) -> bool:
    return isinstance(lora.recipe, Recipe) and is_demo(lora.recipe.teacher_name)


def _is_few_step(lora: LoraFacts, choices: Choices) -> bool:
    return bool(choices.kind) or lora.recipe is not None or bool(lora.kind)


def _others(every: list[LoraFacts], names: Sequence[str], find: Finder) -> list[PresentLora]:
    """The LoRAs of a prompt that are none of these, as the notes on merged ones want them."""
    found = []
    for tag in every:
        lora = find(tag.name)
        if tag.name not in names and lora is not None and tag.strength:
            found.append(PresentLora(lora.path.stem, tag.strength, autov3=lora.autov3))
    return found


def _read(every: list[LoraFacts], read: Reader, find: Finder) -> tuple[list[LoraFacts], list[str]]:
    """(LoRAs of a prompt that are, or seem to be, few-step ones, what is wrong with files)."""
    found, notes = [], []
    for tag in every:
        listed = find(tag.name)
        try:
            lora = read(listed.path) if listed is not None else LoraFacts()
        except DPDMDError as error:
            notes.append(f"{tag.name}: {error}")
            continue
        if lora.recipe is not None or lora.kind or lora.likely:
            found.append(replace(lora, name=tag.name, strength=tag.strength))
    return found, notes


def size_note(setup: Setup, width: int, height: int) -> str:
    """The note that an image's size is far from all that the LoRA was trained at; "" if it is not.

    Args:
        width, height: pixels of the image.
    """
    sizes = setup.recipe.resolutions if setup.recipe is not None else ()
    ratios = [width * height / (w * h) for w, h in sizes]
    if not ratios or any(1 / FAR <= ratio <= FAR for ratio in ratios):
        return ""
    trained = ", ".join(f"{w}x{h}" for w, h in sizes)
    return (
        f"{setup.names()} was trained at {trained}, and this image is {width}x{height}: expect "
        "repeated or missing parts. Choose a size near to those, and enlarge it afterwards."
    )


def hires_note(setup: Setup, hires: Sequence[str], *, read: Reader, find: Finder) -> str:
    """The note that a few-step LoRA stands in only one of the prompts of both passes; "" if not.

    Args:
        hires: prompts of the hires pass, none where it has the same ones.
    """
    there = {tag.name: tag for tag in tags("\n".join(hires))}
    if not hires:
        return ""
    if setup.recipe is not None:
        gone = [name for name in setup.loras if name not in there]
        return (
            f"{' and '.join(gone)} is not in the hires prompt, whose pass is sampled in "
            f"{setup.steps} steps all the same: write it there, too."
            if gone
            else ""
        )
    found, _ = _read(list(there.values()), read, find)
    few = [lora.name for lora in found if lora.recipe is not None and lora.strength != 0]
    return (
        f"{' and '.join(few)} is in the hires prompt only, so its steps and CFG were not set: "
        "write it into the first prompt, too, or choose the hires steps, sampler DP-DMD and CFG 1 "
        "yourself."
        if few
        else ""
    )
