"""The recipe of the LoRAs in use, or the usual grid of the checkpoint's family."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

from ...core.errors import DPDMDError, SettingsError
from ...core.files.tensor_file import read_header
from ...core.recipe.few_step import FAMILY_LABELS, check_fit, default_recipe
from ...core.recipe.recipe import Recipe, read_recipe
from .. import host


def recipe_of(path: Path) -> Recipe | None:
    """The recipe in a LoRA file, None if it has none or is no such file.

    Raises:
        RecipeError: the recipe is broken or of a newer version.
    """
    try:
        state = path.stat()
    except OSError:
        return None
    return _read(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: str, size: int, changed: int) -> Recipe | None:
    try:
        metadata = read_header(Path(path)).metadata
    except DPDMDError:
        return None  # a pickle, or damaged: the host says so itself
    return read_recipe(metadata)


def active_recipe() -> Recipe | None:
    """The recipe of the few-step LoRA of the running generation; the first one if there are two."""
    for lora in host.active_loras():
        with contextlib.suppress(DPDMDError):  # said by the set-up script
            recipe = recipe_of(lora.path)
            if recipe is not None:
                return recipe
    return None


def recipe_for(facts: host.ModelFacts | None) -> Recipe:
    """What the loaded checkpoint is sampled by: its LoRA's recipe, or its family's usual grid.

    Raises:
        LoraError: the recipe is for another family or prediction.
        SettingsError: no checkpoint is loaded, or one that is none of ours.
    """
    if facts is None:
        raise SettingsError("No checkpoint is loaded. Choose one and generate again.")
    recipe = active_recipe()
    if recipe is not None:
        check_fit(recipe, facts.family, facts.prediction)
        return recipe
    if facts.family not in FAMILY_LABELS:
        raise SettingsError(
            "The DP-DMD sampler does not know this kind of checkpoint; expected "
            f"{', '.join(FAMILY_LABELS.values())}. Choose another sampler for it."
        )
    return default_recipe(
        facts.family,
        facts.prediction,
        shift=facts.shift,
        zero_terminal_snr=facts.zero_terminal_snr,
    )
