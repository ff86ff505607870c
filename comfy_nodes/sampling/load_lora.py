"""The node that loads a few-step LoRA together with what it says about its own sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import CheckpointError, LoraError, UnsupportedLoraError
from ...core.families import FAMILY_LABELS
from ...core.files.tensor_file import TensorFile, read_header
from ...core.lora.contents import read_contents
from ...core.recipe.recipe import METADATA_KEY, Recipe, usage_hint
from ...core.recipe.resolve import (
    AS_TRAINED,
    USUAL,
    LoraFacts,
    Resolved,
    check_family,
    check_model,
    follows_flow,
    resolve,
)
from ..host import folders, loras, models, running
from ..host.inputs import node_input
from .recipes import STRENGTH_ATTACHMENT, WORDS, loras_on, recipe_text_of


class LoadLora:
    """DP-DMD Load LoRA."""

    DISPLAY_NAME = "DP-DMD Load LoRA"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Loads a few-step LoRA and reads from the file how it is sampled: steps, noise levels, "
        "guidance. Refuses LoRAs of another family."
    )
    SEARCH_ALIASES = (
        "few step lora", "4 step lora", "turbo", "lightning", "lora loader", "distilled lora",
        "dmd",
    )  # fmt: skip
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
        names, limits = folders.file_names("loras"), {"min": -10.0, "max": 10.0, "step": 0.01}
        strength = node_input(
            "FLOAT",
            "Few-step LoRAs are made for 1.0. A little less mostly draws as well; above 1 seeds "
            "look more alike.",
            default=1.0,
            **limits,
        )
        return {
            "required": {
                "model": node_input("MODEL", "The checkpoint that the LoRA was made for."),
                "lora_name": node_input(names, "A LoRA in the host's loras folder."),
                "strength": strength,
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None = None) -> bool:
        """The file's header, before the graph is queued; None for a name on a wire.

        Raises:
            LoraError: it is no LoRA, or is damaged.
            RecipeError: its recipe is broken or of a newer version.
            SettingsError: it has gone.
        """
        if lora_name is not None:
            file, _, _ = inspect_lora(folders.file_path("loras", lora_name))
            if METADATA_KEY in file.metadata:
                Recipe.from_json(file.metadata[METADATA_KEY])
        return True

    def load(self, model: models.Model, lora_name: str, strength: float) -> dict[str, Any]:
        """Load the file onto the model.

        Raises:
            LoraError: it is no LoRA, is damaged, fits nothing in the model, or is for another
                family or prediction.
            RecipeError: its recipe is broken or of a newer version.
        """
        path = folders.file_path("loras", lora_name)
        file, modules, family = inspect_lora(path)
        facts = replace(models.model_facts(model), flow_at_will=True)
        text, before = file.metadata.get(METADATA_KEY), recipe_text_of(model)
        recipe = Recipe.from_json(text) if text is not None else None
        as_flow = recipe is not None and follows_flow(recipe, facts)
        if recipe is not None:
            check_model(recipe, facts, WORDS, path.name)
        elif family in FAMILY_LABELS and facts.family:
            check_family(family, facts.family, path.name)
        loaded, applied = loras.load_lora(model, path, strength)
        notes = _check_applied(path, applied, modules)
        if recipe is not None and as_flow:
            loaded = models.with_flow(loaded, recipe.shift or 1.0)
        if text is not None:
            loaded.set_attachments(models.RECIPE_ATTACHMENT, text)
            loaded.set_attachments(STRENGTH_ATTACHMENT, float(strength))
        elif before is not None:  # of a few-step LoRA under this one
            loaded.set_attachments(models.RECIPE_ATTACHMENT, before)
        there = loras_on(loaded, recipe)
        if recipe is not None and before is not None:  # its text gave way to the new one's
            there = [there[0], LoraFacts(recipe=before)]
        found = resolve(facts, there, AS_TRAINED, WORDS)
        said = [_summary(path, found, is_own=recipe is not None), *found.notes, *notes]
        return running.outcome("\n".join(filter(None, said)), (loaded, found.recipe))


def _summary(path: Path, found: Resolved, *, is_own: bool) -> str:
    if is_own:
        return f"{path.name}: {usage_hint(found.recipe)}"
    if found.origin != USUAL:
        return f"{path.name} is on. The recipe is that of the few-step LoRA under it."
    return ""


def inspect_lora(path: Path) -> tuple[TensorFile, int, str]:
    """(header, number of changed parameters of the denoiser, family or "") of a LoRA file.

    A module counts once, and twice where its bias is changed as well, as the host counts. Kinds
    that only the host knows have none and no family here.

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
        contents = read_contents(file)
    except UnsupportedLoraError:
        # not shown: ComfyUI may know names that we do not, and _check_applied speaks if it did not
        return file, 0, ""
    changed = sum(len(module.parameters) for module in contents.modules.values())
    return file, changed, contents.family


def _check_applied(path: Path, applied: loras.Applied, modules: int) -> list[str]:
    """Notes on modules that the host did not take; LoraError if it took none."""
    if applied.count == 0:
        raise LoraError(
            f"Nothing in {path.name} fits this model: no name in it is one that ComfyUI knows "
            "here. It is no LoRA, was made for another model, or is written in a form that only "
            "diffusers reads; then distil or convert it in kohya's form."
        )
    if applied.misfits == applied.count:
        raise LoraError(
            f"Nothing in {path.name} fits this model: its {applied.count} modules have the names "
            "of this model's, and other sizes. It was made for another size of the family, such as "
            "SD3.5 large where this is medium: choose another LoRA or another checkpoint."
        )
    notes = []
    if applied.count < modules:
        notes.append(
            f"Only {applied.count} of {modules} modules of the LoRA were applied: ComfyUI does not "
            "know the names of the others. Images will be wrong; convert it to kohya's form."
        )
    if applied.misfits:
        notes.append(
            f"{applied.misfits} of {applied.count} modules of the LoRA have another size than this "
            "model's and are left out. That is usual for the first layer of an inpainting model; "
            "more of them, and images will be wrong."
        )
    return notes


NODES = (LoadLora,)
