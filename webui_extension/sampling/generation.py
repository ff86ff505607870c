"""What a generation is sampled by: what the set-up script told, or what the active LoRAs say."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import DPDMDError
from ...core.files.tensor_file import read_header
from ...core.recipe.recipe import MAX_STEPS, Recipe
from ...core.recipe.resolve import (
    AS_TRAINED,
    Asked,
    LoraFacts,
    ModelFacts,
    Resolved,
    Words,
    resolve,
)
from ..host import loras, models, scripts

WORDS = Words(
    model="checkpoint",
    kinds="Kind of few-step LoRA",
    other_family="Choose another sampler for it.",
    other_sampling="Choose another sampler for it.",
    predictions={
        "flow": (
            "If it is that checkpoint, its file does not say that it is a rectified flow: in "
            "reForge turn on Advanced Model Sampling (Flow, shift {shift}), in Forge Neo give it a "
            "name that contains 'rectified' and set shift {shift}."
        )
    },
)
TOLD = "dpdmd_told"
"""Where on the host's processing object it is told."""
_kinds: dict[str, str] = {}
"""LoRA -> kind, as chosen for the generation that runs: its second passes may be objects of their
own, made by other extensions, which know the LoRAs alone."""


@dataclass(frozen=True)
class Anchor:
    """The base model's part: which LoRAs are off, how many steps (0 as in training), guidance."""

    loras: tuple[str, ...]
    steps: int = 0
    guidance: float = 1.0

    def describe(self) -> str:
        """The infotext's words."""
        steps = {0: "trained steps", 1: "1 step"}.get(self.steps, f"{self.steps} steps")
        return f"{steps} at CFG {self.guidance:g}"


@dataclass(frozen=True)
class Told:
    """What the set-up script found for one generation.

    Attributes:
        recipe: what to sample by; None leaves it to the active LoRAs or the family.
        anchor: the base model's part; the guidance that is set is its own then.
        attention: as chosen in the accordion, "" for the host's.
        kind: the kind of LoRA that the recipe is of, "" for one of the file's own.
        loras: the few-step LoRAs.
    """

    recipe: Recipe | None = None
    anchor: Anchor | None = None
    attention: str = ""
    kind: str = ""
    loras: tuple[str, ...] = ()


def tell(p: scripts.Processing, told: Told) -> None:
    """Note what this generation is sampled by."""
    setattr(p, TOLD, (id(p), told))
    _kinds.clear()
    if told.kind:
        _kinds.update(dict.fromkeys(told.loras, told.kind))


def told(p: scripts.Processing) -> Told:
    """What was noted for this generation; a copy of it, as scripts make for later passes, is told
    the same but for the anchor."""
    owner, found = getattr(p, TOLD, (id(p), Told()))
    return found if owner == id(p) else replace(found, anchor=None)


def anchor_of(p: scripts.Processing) -> Anchor | None:
    """The base model's part; none in a second pass, where the layout is settled."""
    return None if scripts.is_second_pass(p) else told(p).anchor


def resolved(p: scripts.Processing, sigmas: Tensor, asked: Asked = AS_TRAINED) -> Resolved:
    """What the script has found, or what the active LoRAs or the family say.

    Args:
        sigmas: those of the denoiser in use, increasing.
    """
    found = told(p)
    if found.kind:
        return _resolve(models.model_facts(sigmas), (), replace(asked, kind=found.kind))
    if found.recipe is not None:  # and looked at already
        return _resolve(None, [LoraFacts(recipe=found.recipe)], asked)
    return in_force(models.model_facts(sigmas), asked)


def in_force(facts: ModelFacts | None, asked: Asked) -> Resolved:
    """What the running generation is sampled by: its LoRA's recipe, or its family's usual grid.

    Args:
        facts: of the checkpoint, None while none is loaded.

    Raises:
        DPDMDError: as `core.recipe.resolve.resolve`.
    """
    active = active_loras()
    if all(lora.recipe is None for lora in active):
        kinds = (_kinds[lora.name] for lora in active if lora.name in _kinds)
        asked = replace(asked, kind=next(kinds, ""))
    return _resolve(facts, active, asked)


def _resolve(facts: ModelFacts | None, active: Sequence[LoraFacts], asked: Asked) -> Resolved:
    """As `core.recipe.resolve.resolve`; hosts' sliders go beyond the steps that a recipe may have.

    The grid of that many is divided further then, evenly in the logarithm of its levels.
    """
    if asked.steps <= MAX_STEPS or asked.kind:
        return resolve(facts, active, asked, WORDS)
    found = resolve(facts, active, replace(asked, steps=MAX_STEPS), WORDS)
    levels = found.plan.sigmas[:-1].log()
    count = max(1, round(len(levels) * asked.steps / MAX_STEPS))
    place = torch.linspace(0, len(levels) - 1, count)
    low = place.floor().long().clamp(max=max(0, len(levels) - 2))
    high = (low + 1).clamp(max=len(levels) - 1)
    finer = torch.lerp(levels[low], levels[high], place - low).exp()
    sigmas = torch.cat([finer, found.plan.sigmas[-1:]])
    return replace(found, plan=replace(found.plan, sigmas=sigmas))


def active_loras() -> list[LoraFacts]:
    """The LoRAs of the running generation that can be read."""
    found = []
    for lora in loras.active_loras():
        with contextlib.suppress(DPDMDError):  # said by the set-up script
            found.append(replace(lora_in(lora.path), name=lora.name, strength=lora.strength))
    return found


def lora_in(path: Path) -> LoraFacts:
    """What a LoRA file says of itself; nothing if there is no such file.

    Raises:
        RecipeError: its recipe is broken or of a newer version.
    """
    try:
        state = path.stat()
    except OSError:
        return LoraFacts()
    return _read(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> LoraFacts:
    try:
        metadata = read_header(path).metadata
    except DPDMDError:
        return LoraFacts()  # a pickle, or damaged: the host says so itself
    return LoraFacts.of(metadata, path.stem).read()
