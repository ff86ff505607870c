"""The recipe that a MODEL is sampled by: off the wire, off its LoRA, or the family's usual one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import SettingsError
from ...core.recipe.few_step import FAMILY_LABELS, check_fit, default_recipe
from ...core.recipe.recipe import METADATA_KEY, Recipe
from .. import host

NO_RECIPE = (
    "No recipe: the LoRA on this MODEL does not say how it is sampled, so the usual {steps}-step "
    "grid of {family} is taken. If it is a DP-DMD LoRA, load it with DP-DMD Load LoRA: the core "
    "loader loses its recipe under other LoRAs, and in an older ComfyUI. For few-step LoRAs of "
    "other makers use DP-DMD Anchored Sampler or set the steps by hand."
)
TWO_LORAS = (
    "There are two few-step LoRAs on this MODEL, which do the same work twice: take one off."
)
SAMPLING_HINT = (
    "If it is that checkpoint, its file does not say how it predicts: put ModelSamplingDiscrete "
    "with {kind} behind Load Checkpoint."
)
SAMPLING_KINDS = {"eps": "eps", "v": "v_prediction", "x0": "x0"}


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
        check_model(recipe, facts)
        return FoundRecipe(recipe, True, "\n".join(_notes(model, recipe, facts)))
    family = facts.family
    if family not in FAMILY_LABELS:
        raise SettingsError(
            f"This MODEL is a {facts.name or 'model'} that DP-DMD sampling does not know; expected "
            f"{', '.join(FAMILY_LABELS.values())}. Use core's KSampler for it."
        )
    if not facts.prediction:
        raise SettingsError(
            f"This {FAMILY_LABELS[family]} MODEL is set to sample in a way that DP-DMD sampling "
            "does not know (such as EDM or LCM). Take the node off that sets it, such as "
            "ModelSamplingDiscrete, or use core's KSampler."
        )
    usual = default_recipe(
        family,
        facts.prediction,
        shift=facts.shift,
        zero_terminal_snr=facts.zero_terminal_snr,
    )
    note = NO_RECIPE.format(steps=usual.num_steps, family=FAMILY_LABELS[family])
    return FoundRecipe(usual, False, note)


def check_model(recipe: Recipe, facts: host.ModelFacts, what: str = "The LoRA") -> None:
    """Raise LoraError, with ComfyUI's remedy, if a recipe is for another kind of MODEL."""
    kind = SAMPLING_KINDS.get(recipe.prediction)
    hint = SAMPLING_HINT.format(kind=kind) if kind else ""
    check_fit(recipe, facts.family, facts.prediction, what, hint)


def recipe_of(model: host.Model) -> Recipe | None:
    """The recipe attached to a MODEL by our loader or by the core LoRA loader; None for none.

    Raises:
        RecipeError: it is broken or of a newer version.
    """
    text = recipe_text_of(model)
    return None if text is None else Recipe.from_json(text)


def recipe_text_of(model: host.Model) -> str | None:
    """The text of that recipe, whatever it holds."""
    own = host.attachment(model, host.RECIPE_ATTACHMENT)
    return own if isinstance(own, str) else _core_recipe_text(model)


def _core_recipe_text(model: host.Model) -> str | None:
    metadata = host.attachment(model, "lora_metadata")
    return recipe_text(metadata) if isinstance(metadata, Mapping) else None


def has_recipe(model: host.Model) -> bool:
    """Whether a few-step LoRA of ours is on the MODEL, its recipe readable or not."""
    return recipe_text_of(model) is not None


def recipe_text(metadata: Mapping[str, Any]) -> str | None:
    """The recipe in a LoRA's metadata as it stands there."""
    text = metadata.get(METADATA_KEY)
    return text if isinstance(text, str) else None


STRENGTH_ATTACHMENT = "dpdmd_strength"


def _notes(model: host.Model, recipe: Recipe, facts: host.ModelFacts) -> list[str]:
    """What may be wrong with a MODEL that is sampled by this recipe."""
    notes = []
    own, other = host.attachment(model, host.RECIPE_ATTACHMENT), _core_recipe_text(model)
    if own is not None and other is not None and own != other:
        notes.append(TWO_LORAS)
    strength = host.attachment(model, STRENGTH_ATTACHMENT)
    if own is None and other is not None:  # from the core loader, which notes no strength
        strength = host.only_strength(model)
    if isinstance(strength, float) and strength != 1.0:
        notes.append(
            f"The LoRA is at strength {strength:g}; it was trained for 1.0, where its steps and "
            "noise levels are right."
        )
    if recipe.prediction != "flow" and recipe.zero_terminal_snr != facts.zero_terminal_snr:
        trained, wanted = ("with", "on") if recipe.zero_terminal_snr else ("without", "off")
        notes.append(
            f"The LoRA was trained {trained} zero terminal SNR, and this MODEL is set otherwise: "
            f"put ModelSamplingDiscrete with zsnr {wanted} behind Load Checkpoint."
        )
    return notes
