"""What the web UI says of its LoRAs, for `core.recipe.resolve`, and its words for that."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ...core.errors import DPDMDError
from ...core.files.tensor_file import read_header
from ...core.recipe.resolve import Asked, LoraFacts, ModelFacts, Resolved, Words, resolve
from ..host import loras

WORDS = Words(
    model="checkpoint",
    kinds="Kind of few-step LoRA",
    other_family="Choose another sampler for it.",
    other_sampling="Choose another sampler for it.",
)


def lora_in(path: Path) -> LoraFacts:
    """What a LoRA file says of itself; nothing if there is no such file.

    Raises:
        RecipeError: its recipe is broken or of a newer version.
    """
    try:
        state = path.stat()
    except OSError:
        return LoraFacts()
    return _read(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: str, size: int, changed: int) -> LoraFacts:
    try:
        metadata = read_header(Path(path)).metadata
    except DPDMDError:
        return LoraFacts()  # a pickle, or damaged: the host says so itself
    return LoraFacts.of(metadata, Path(path).stem).read()


def active_loras() -> list[LoraFacts]:
    """The few-step LoRAs of the running generation that can be read."""
    found = []
    for lora in loras.active_loras():
        with contextlib.suppress(DPDMDError):  # said by the set-up script
            found.append(replace(lora_in(lora.path), name=lora.name, strength=lora.strength))
    return found


def in_force(facts: ModelFacts | None, asked: Asked) -> Resolved:
    """What the running generation is sampled by: its LoRA's recipe, or its family's usual grid.

    Args:
        facts: of the checkpoint, None while none is loaded.

    Raises:
        DPDMDError: as `core.recipe.resolve.resolve`.
    """
    return resolve(facts, active_loras(), asked, WORDS)
