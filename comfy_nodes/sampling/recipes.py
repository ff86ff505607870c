"""What ComfyUI says of a MODEL and its LoRAs, for `core.recipe.resolve`, and its words for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import AS_TRAINED, Asked, LoraFacts, Resolved, Words, resolve
from ..host import loras, models

STRENGTH_ATTACHMENT = "dpdmd_strength"
SAMPLING_HINT = (
    "If it is that checkpoint, its file does not say how it predicts: put ModelSamplingDiscrete "
    "with {kind} behind Load Checkpoint."
)
FLOW_HINT = (
    "If it is that checkpoint, its file does not say that it is a rectified flow: load the LoRA "
    "with DP-DMD Load LoRA, which sets that, or put ModelSamplingSD3 with shift {shift} behind "
    "Load Checkpoint."
)
WORDS = Words(
    model="MODEL",
    kinds="settings",
    other_family="Use core's KSampler for it.",
    other_sampling=(
        "Take the node off that sets it, such as ModelSamplingDiscrete, or use core's KSampler."
    ),
    predictions={
        prediction: SAMPLING_HINT.format(kind=kind)
        for prediction, kind in (("eps", "eps"), ("v", "v_prediction"), ("x0", "x0"))
    }
    | {"flow": FLOW_HINT},
    zero_terminal_snr="put ModelSamplingDiscrete with zsnr {wanted} behind Load Checkpoint",
    no_recipe=(
        "No recipe: the LoRA on this MODEL does not say how it is sampled, so the usual {steps}-"
        "step grid of {family} is taken. If it is a DP-DMD LoRA, load it with DP-DMD Load LoRA: "
        "the core loader loses its recipe under other LoRAs, and in an older ComfyUI. For "
        "third-party few-step LoRAs use DP-DMD Anchored Sampler or set the steps by hand."
    ),
)


def find_recipe(
    model: models.Model, wired: Recipe | None = None, asked: Asked = AS_TRAINED
) -> Resolved:
    """What to sample a MODEL by: the wired recipe, that of its LoRA, or its family's usual grid.

    Raises:
        DPDMDError: as `core.recipe.resolve.resolve`.
    """
    return resolve(models.model_facts(model), loras_on(model, wired), asked, WORDS)


def loras_on(model: models.Model, wired: Recipe | None = None) -> list[LoraFacts]:
    """The few-step LoRAs on a MODEL as our loader and the core LoRA loader left them behind.

    Args:
        wired: recipe of the first of them that came by wire, and goes before what lies on it.
    """
    text = model.get_attachment(models.RECIPE_ATTACHMENT)
    metadata = model.get_attachment("lora_metadata")
    core = LoraFacts.of(metadata) if isinstance(metadata, Mapping) else LoraFacts()
    found = []
    if isinstance(text, str):
        strength = model.get_attachment(STRENGTH_ATTACHMENT)
        strength = strength if isinstance(strength, float) else None
        found.append(LoraFacts(recipe=text, strength=strength))
    if core.recipe is not None and core.recipe != text:
        # the core loader notes no strength
        found.append(core if found else replace(core, strength=loras.only_strength(model)))
    elif core.recipe is None and core.kind:
        found.append(core)
    if wired is not None:
        found[:1] = [replace(found[0] if found else LoraFacts(), recipe=wired)]
    return found


def has_recipe(model: models.Model) -> bool:
    """Whether a few-step LoRA of ours is on the MODEL, its recipe readable or not."""
    return recipe_text_of(model) is not None


def recipe_text_of(model: models.Model) -> str | None:
    """The text of the recipe on a MODEL, whatever it holds; None for none."""
    texts = (lora.recipe for lora in loras_on(model))
    return next((text for text in texts if isinstance(text, str)), None)
