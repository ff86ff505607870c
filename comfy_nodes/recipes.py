"""The recipe that a MODEL is sampled by: off the wire, off its LoRA, or the family's usual one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import RecipeError, SettingsError
from ..core.few_step import FAMILY_LABELS, check_fit, default_recipe
from ..core.recipe import METADATA_KEY, Recipe, read_recipe
from . import host

NO_RECIPE = (
    "No recipe: the LoRA on this MODEL does not say how it is sampled, so the usual {steps}-step "
    "grid of {family} is taken. For few-step LoRAs of other makers use DP-DMD Anchored Sampler or "
    "set the steps by hand."
)


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe, whether it came with the LoRA, and what to tell the user."""

    recipe: Recipe
    from_lora: bool
    note: str = ""


def find_recipe(model: host.Model, wired: Recipe | None = None) -> FoundRecipe:
    """What to sample a MODEL by: the wired recipe, that of its LoRA, or its family's usual grid.

    Raises:
        LoraError: the recipe is for another family or prediction.
        RecipeError: the recipe in the LoRA is broken or of a newer version.
        SettingsError: there is no recipe, and the model's family is none of ours.
    """
    facts = host.model_facts(model)
    recipe = wired if wired is not None else recipe_of(model)
    if recipe is not None:
        check_fit(recipe, facts.family, facts.prediction)
        return FoundRecipe(recipe, True, _strength_note(model))
    family = facts.family
    if family not in FAMILY_LABELS:
        raise SettingsError(
            f"This MODEL is a {facts.name or 'model'} that DP-DMD sampling does not know; expected "
            f"{', '.join(FAMILY_LABELS.values())}. Use core's KSampler for it."
        )
    usual = default_recipe(
        family,
        facts.prediction,
        shift=facts.shift,
        zero_terminal_snr=facts.zero_terminal_snr,
    )
    note = NO_RECIPE.format(steps=usual.num_steps, family=FAMILY_LABELS[family])
    return FoundRecipe(usual, False, note)


def recipe_of(model: host.Model) -> Recipe | None:
    """The recipe attached to a MODEL by our loader or by the core LoRA loader; None for none.

    Raises:
        RecipeError: it is broken or of a newer version.
    """
    own = host.attachment(model, host.RECIPE_ATTACHMENT)
    if isinstance(own, str):
        return Recipe.from_json(own)
    metadata = host.attachment(model, "lora_metadata")
    return read_recipe(metadata) if isinstance(metadata, Mapping) else None


def has_recipe(model: host.Model) -> bool:
    """Whether a few-step LoRA of ours is on the MODEL, readable or not."""
    try:
        return recipe_of(model) is not None
    except RecipeError:
        return True


def recipe_text(metadata: Mapping[str, Any]) -> str | None:
    """The recipe in a LoRA's metadata as it stands there."""
    text = metadata.get(METADATA_KEY)
    return text if isinstance(text, str) else None


def _strength_note(model: host.Model) -> str:
    strength = host.attachment(model, STRENGTH_ATTACHMENT)
    if isinstance(strength, float) and strength != 1.0:
        return strength_note(strength)
    return ""


STRENGTH_ATTACHMENT = "dpdmd_strength"


def strength_note(strength: float) -> str:
    """What a strength other than 1 means."""
    return (
        f"The LoRA is at strength {strength:g}; it was trained for 1.0, where its steps and noise "
        "levels are right."
    )
