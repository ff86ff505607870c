"""The node that loads a few-step LoRA together with what it says about its own sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, LoraError
from ..core.few_step import FAMILY_LABELS, check_fit
from ..core.lora_keys import detect_family, group_keys
from ..core.recipe import Recipe
from ..core.tensor_file import TensorFile, read_header
from . import host
from .recipes import (
    STRENGTH_ATTACHMENT,
    find_recipe,
    has_recipe,
    recipe_text,
    strength_note,
)


class LoadLora:
    """DP-DMD Load LoRA."""

    DISPLAY_NAME = "DP-DMD Load LoRA"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Loads a few-step LoRA and reads from the file how it is sampled: steps, noise levels, "
        "guidance. Refuses LoRAs of another family."
    )
    SEARCH_ALIASES = ("few step lora", "lora loader", "distilled lora", "dmd", "lightning")
    RETURN_TYPES = ("MODEL", "DPDMD_RECIPE")
    RETURN_NAMES = ("model", "recipe")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA. It carries the recipe, so the samplers of this pack find it.",
        "How the LoRA was trained to be sampled.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The checkpoint that the LoRA was made for."}),
                "lora_name": (
                    host.file_names("loras"),
                    {"tooltip": "A LoRA in the host's loras folder."},
                ),
                "strength": (
                    "FLOAT",
                    {**strength, "tooltip": "Few-step LoRAs are made for 1.0."},
                ),
            }
        }

    def load(self, model: host.Model, lora_name: str, strength: float) -> dict[str, Any]:
        """Load the file onto the model.

        Raises:
            LoraError: it is no LoRA, is damaged, fits nothing in the model, or is for another
                family or prediction.
            RecipeError: its recipe is broken or of a newer version.
        """
        path = host.file_path("loras", lora_name)
        file, modules, family = inspect_lora(path)
        facts = host.model_facts(model)
        text = recipe_text(file.metadata)
        recipe = Recipe.from_json(text) if text is not None else None
        if recipe is not None:
            check_fit(recipe, facts.family, facts.prediction, path.name)
        elif family in FAMILY_LABELS and facts.family and family != facts.family:
            raise LoraError(
                f"{path.name} was made for {FAMILY_LABELS[family]}, but the model is "
                f"{FAMILY_LABELS[facts.family]}. A LoRA fits models of its own family only: choose "
                "another LoRA or another checkpoint."
            )
        notes = _notes(model, strength, recipe is not None)
        loaded = host.load_lora(model, path, strength)
        notes += _check_applied(path, loaded.applied, modules)
        if text is not None:
            host.attach(loaded.model, host.RECIPE_ATTACHMENT, text)
            host.attach(loaded.model, STRENGTH_ATTACHMENT, float(strength))
        found = find_recipe(loaded.model, recipe)
        said = [f"{path.name}: {found.recipe.plain_host}"] if found.from_lora else [found.note]
        return {"ui": {"text": ["\n".join(said + notes)]}, "result": (loaded.model, found.recipe)}


def inspect_lora(path: Path) -> tuple[TensorFile, int, str]:
    """(header, number of modules of the denoiser, family or "") of a LoRA file.

    Kinds that only the host knows have 0 modules and no family here.

    Raises:
        LoraError: it is not a safetensors file, or is damaged.
    """
    if path.suffix.lower() != ".safetensors":
        raise LoraError(
            f"{path.name} is not a .safetensors file. Other formats can run any code when they are "
            "opened; get the .safetensors version."
        )
    try:
        file = read_header(path)
    except CheckpointError as error:
        raise LoraError(f"The LoRA cannot be read. {error}") from error
    try:
        modules, _ = group_keys(file.tensors, path.name)
    except LoraError:
        return file, 0, ""
    shapes = {key: info.shape for key, info in file.tensors.items()}
    return file, len(modules), detect_family(modules, shapes)


def _notes(model: host.Model, strength: float, has_own_recipe: bool) -> list[str]:
    notes = []
    if has_own_recipe and has_recipe(model):
        notes.append(
            "There is a few-step LoRA on this MODEL already. Two of them do the same work twice: "
            "take one off."
        )
    if has_own_recipe and strength != 1.0:
        notes.append(strength_note(strength))
    return notes


def _check_applied(path: Path, applied: int, modules: int) -> list[str]:
    """Notes on modules that the host did not take; LoraError if it took none."""
    if applied == 0:
        raise LoraError(
            f"Nothing in {path.name} fits this model: no name in it is one that ComfyUI knows "
            "here. It is no LoRA, was made for another model, or is written in a form that only "
            "diffusers reads; then distil or convert it in kohya's form."
        )
    if applied < modules:
        return [
            f"Only {applied} of {modules} modules of the LoRA were applied: ComfyUI does not know "
            "the names of the others. Pictures will be wrong; convert it to kohya's form."
        ]
    return []


NODES = (LoadLora,)
