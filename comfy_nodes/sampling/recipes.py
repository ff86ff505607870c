"""What ComfyUI says of a MODEL and its LoRAs, for `core.recipe.resolve`, and its words for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import CheckpointError
from ...core.files.tensor_file import read_header
from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import AS_TRAINED, FILE, Asked, LoraFacts, Resolved, Words, resolve
from ..host import graph, loras, models

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
        "other loaders may lose its recipe. For third-party few-step LoRAs use DP-DMD Anchored "
        "Sampler or set the steps by hand."
    ),
)


NO_LORA = (
    "No LoRA is on this MODEL, so the usual {steps}-step grid of {family} is taken. That is right "
    "for a checkpoint that a few-step LoRA was merged into. Otherwise see whether the LoRA's "
    "loader is bypassed, has strength 0, or lies on another wire."
)
NAMED = "The recipe is that of {lora}, which this graph loads with {loader}."
MERGED = "The recipe is that of {lora}, which is merged into this checkpoint, as its file says."
SHIFT = (
    "This MODEL is set to shift {there:g}, which changes nothing here: the noise levels are the "
    "LoRA's, trained with shift {trained:g}."
)


def find_recipe(
    model: models.Model,
    wired: Recipe | None = None,
    asked: Asked = AS_TRAINED,
    source: str = "",
) -> Resolved:
    """What to sample a MODEL by: the wired recipe, that of its LoRA, or its family's usual grid.

    Args:
        source: the running node's input that the MODEL came by; "" for whichever it has.

    Raises:
        DPDMDError: as `core.recipe.resolve.resolve`.
    """
    facts, there = models.model_facts(model), loras_on(model, wired)
    words, notes = WORDS, []
    if not there:
        there, notes = loras_named(model, source)
        if not there and not models.is_patched(model):
            words = replace(WORDS, no_recipe=NO_LORA)
    found = resolve(facts, there, asked, words)
    trained = found.recipe.shift
    if found.origin == FILE and trained and facts.shift and abs(facts.shift - trained) > 1e-3:
        notes.append(SHIFT.format(there=facts.shift, trained=trained))
    return found.with_notes(notes)


def loras_named(model: models.Model, source: str = "") -> tuple[list[LoraFacts], list[str]]:
    """(few-step LoRAs that the graph, or the checkpoint's own, names, notes on where).

    For MODELs whose loader left nothing of a LoRA's file behind.
    """
    if models.is_patched(model):
        running, node = graph.here()
        named, words = graph.loras_before(running, node, source), NAMED
    else:
        saved = models.saved_graph(model)
        nodes = [name for name in saved if graph.saves_model(saved, name)]
        named = [lora for node in nodes for lora in graph.loras_before(saved, node, "model")]
        words = MERGED
    found: dict[str, tuple[LoraFacts, str]] = {}
    for lora in named:
        try:
            facts = LoraFacts.of(read_header(lora.path).metadata, lora.path.name)
        except CheckpointError:  # of another format, or damaged: its loader speaks
            continue
        if facts.recipe is not None or facts.kind:
            facts = replace(facts, name=lora.path.name, strength=lora.strength)
            found.setdefault(lora.name, (facts, lora.loader))
    facts = [one for one, _ in found.values()]
    first = next((pair for pair in found.values() if pair[0].recipe is not None), None)
    notes = [words.format(lora=first[0].name, loader=first[1])] if first else []
    return facts, notes


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


def has_recipe(model: models.Model, source: str = "") -> bool:
    """Whether a few-step LoRA of ours is on the MODEL, its recipe readable or not.

    Args:
        source: as of `find_recipe`.
    """
    there = loras_on(model) or loras_named(model, source)[0]
    return any(lora.recipe is not None for lora in there)


def recipe_text_of(model: models.Model) -> str | None:
    """The text of the recipe on a MODEL, whatever it holds; None for none."""
    texts = (lora.recipe for lora in loras_on(model))
    return next((text for text in texts if isinstance(text, str)), None)
