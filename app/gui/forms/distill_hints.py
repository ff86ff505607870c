"""What the Distill page says while it is filled in: what was detected, counts, examples, cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from ....core.errors import DPDMDError
from ....core.families import (
    USUAL_ENCODER,
    Detection,
    check_own_parts,
    encoder_title,
    family,
    identify,
)
from ...config.found_files import with_found_files
from ...estimate import Estimate, estimate_file, file_bytes
from ...jobs import made_loras
from ...library import choices as sources
from ...library import preferences
from ...library.model_folders import size_text
from ...prompts.expansion import expand
from ...prompts.reading import PromptList, prompts_text, read_prompts
from ..widgets.html import duration, error_note, facts, note, piece
from . import distill as form
from .changes import Change, Values, noted_at, text_of
from .controls import config_of
from .distill import DEMO_PRESET, KEEP, memory_choices, prompts_of

EXAMPLES = 3


def opening() -> Values:
    """Everything the page shows when it is opened; dropdowns with their choices."""
    values = form.initial()
    found = values | describe_checkpoint(values)
    values["memory"] = found["memory"]["value"]
    found |= describe_prompts(values) | describe_cost(values) | lists()
    known = {value for _, value in found["teacher_loras"]["choices"]}
    chosen = [path for path in values["teacher_loras"] if path in known]
    found["checkpoint"]["value"] = values["checkpoint"]
    found["teacher_loras"]["value"] = chosen
    found["settings_lora"]["value"] = None
    starters = sources.starters()
    proposed = sources.embedded_world(Path(values["checkpoint"])) or starters[0][1]
    found["starter"] = Change(choices=starters, value=proposed)
    return found


def lists() -> Values:
    """What can be chosen now, after folders have changed; choices alone, nothing is unchosen."""
    named = [(folder, folder) for folder in preferences.load().folders]
    loras = sources.loras(made_loras())
    return {
        "checkpoint": Change(choices=sources.checkpoints()),
        "teacher_loras": Change(choices=loras),
        "settings_lora": Change(choices=loras),
        "folder": Change(choices=named, value=named[0][1] if named else None),
    }


@noted_at("folder")
def add_folder(values: Mapping[str, Any]) -> Values:
    """Take a folder into the lists."""
    path = sources.add_folder(values.get("new_folder"))
    count = len(sources.list_models([path], "checkpoint"))
    loras = len(sources.list_models([path], "lora"))
    text = f"Found {count} checkpoints and {loras} LoRAs there."
    return lists() | {"new_folder": "", "folder_note": note(text, "done")}


def forget_folder(values: Mapping[str, Any]) -> Values:
    """Take a folder out of the lists; its files stay where they are."""
    sources.forget_folder(values.get("folder"))
    return lists() | {"folder_note": ""}


def fit_checkpoint(values: Mapping[str, Any]) -> Values:
    """What a demo checkpoint brings when it is chosen, or takes along when it is left."""
    found = form.fit_demo(values)
    if found.get("memory") == DEMO_PRESET:
        found["memory"] = Change(choices=memory_choices(None, True), value=DEMO_PRESET)
    if "prompts" in found:
        found |= describe_prompts({**values, **found})
    world = sources.embedded_world(Path(str(values.get("checkpoint") or "")))
    if world or "memory" in found:
        found["starter"] = world or sources.starters()[0][1]
    return found


def describe_checkpoint(values: Mapping[str, Any]) -> Values:
    """What was detected in the chosen file, presets that suit it, and what is wrong with it."""
    try:
        path = sources.model_path(values.get("checkpoint"))
        detection, embedded = identify(path), sources.is_embedded(path)
    except DPDMDError as error:
        presets = Change(choices=memory_choices(None, False), value=KEEP)
        return {"detected": "", "memory": presets, "checkpoint_note": error_note(error)}
    wrong = None
    try:
        detection = _check_files(path, values)
    except DPDMDError as error:
        wrong = error
    choices = memory_choices(detection, embedded)
    kept = values.get("memory")
    known = kept in {value for _, value in choices}
    value = kept if known else DEMO_PRESET if embedded else KEEP
    return {
        "detected": _detected(path, detection),
        "memory": Change(choices=choices, value=value),
        "checkpoint_note": error_note(wrong) if wrong else "",
    }


def _check_files(path: Path, values: Mapping[str, Any]) -> Detection:
    """What the checkpoint is, once its parts and the files named beside it are known to fit.

    Raises:
        DPDMDError: one cannot be used.
    """
    files, found = with_found_files(form.model_files(values, path))
    vae = Path(files.vae) if files.vae else None
    detection = check_own_parts(path, files.text_encoders(), vae)
    return replace(detection, notes=(*detection.notes, *found))


def _encoder(kind: str) -> str:
    own = kind == USUAL_ENCODER
    return "its own, small" if own else encoder_title(kind).removesuffix(" text encoder")


def _detected(path: Path, detection: Detection) -> str:
    optional = not family(detection.family).text.needs_all
    missing = "not in the file: name them below" if optional else "not in the file"
    encoders = ", ".join(map(_encoder, detection.text_encoders))
    zero = " with zero terminal SNR" if detection.zero_terminal_snr else ""
    return facts(
        {
            "Model": detection.title,
            "Predicts": f"{detection.prediction}{zero}",
            "Made for": f"{detection.resolution} x {detection.resolution} pixels",
            "Text encoders": encoders or missing,
            "VAE": "in the file" if detection.has_vae else "not in the file: name it below",
            "Size": size_text(file_bytes(path)),
        }
        | ({"Note": " ".join(detection.notes)} if detection.notes else {})
    )


def describe_prompts(values: Mapping[str, Any]) -> Values:
    """How many prompts there are, what was dropped, and a few as the model will read them."""
    return _described(values, ())


def _described(values: Mapping[str, Any], said: Iterable[str]) -> Values:
    """The same; `said`: what is to be known of how the text came about."""
    if not text_of(values, "prompts"):
        return {"prompts_count": "No prompts yet.", "examples": "", "prompts_note": ""}
    try:
        found = prompts_of(values)
        shown = examples(found)
    except DPDMDError as error:
        return {"prompts_count": "", "examples": "", "prompts_note": error_note(error)}
    count = len(found.prompts)
    text = "1 prompt" if count == 1 else f"{count:,} prompts"
    held_out = _held_out(count, values.get("evaluation_prompts"))
    return {
        "prompts_count": piece("prompt_count", text, held_out),
        "examples": piece("examples", (*said, *found.notes), shown),
        "prompts_note": "",
    }


@noted_at("prompts")
def apply_starter(values: Mapping[str, Any]) -> Values:
    """The text of the chosen starter prompts, counted."""
    text = sources.starter(values.get("starter"))
    return {"prompts": text} | describe_prompts({**values, "prompts": text})


@noted_at("prompts")
def read_prompt_source(values: Mapping[str, Any]) -> Values:
    """The prompts of an uploaded file, or of a path in the named folders, counted."""
    uploaded = values.get("prompts_upload")
    path = Path(uploaded) if uploaded else sources.prompts_path(values.get("prompts_path"))
    found = read_prompts(path)
    text = prompts_text(found.prompts)
    return {"prompts": text} | _described({**values, "prompts": text}, found.notes)


def _held_out(count: int, wanted: object) -> str:
    held_out = min(wanted if isinstance(wanted, int) else 0, count // 5)
    if held_out < 2:
        return "; none is held out for evaluation (that takes 10 prompts or more)"
    return f"; {held_out} of them are held out for evaluation"


def examples(found: PromptList) -> list[str]:
    """A few prompts with their alternatives chosen."""
    picked = found.prompts[:: max(1, len(found.prompts) // EXAMPLES)][:EXAMPLES]
    return [expand(text, Random(number)) for number, text in enumerate(picked)]


def describe_cost(values: Mapping[str, Any]) -> Values:
    """What the run is expected to need; empty while the form cannot be read."""
    try:
        config = config_of(values)
    except DPDMDError as error:
        return {"estimate": "", "settings_note": error_note(error)}
    try:
        path = sources.model_path(values.get("checkpoint"))
        found = estimate_file(path, _check_files(path, values), config)
    except DPDMDError:  # the note under the checkpoint says so
        return {"estimate": "", "settings_note": ""}
    return {"estimate": _estimate_text(found), "settings_note": ""}


def _estimate_text(found: Estimate) -> str:
    gib = (found.memory_bytes or 0) / 2**30  # as cards are sold and as the text beside it counts
    memory = f"{gib:.1f} GB" if gib >= 1 else "under 1 GB" if gib else "not known"
    time = duration(found.seconds) or "not known yet"
    return piece("estimate", memory, time, found.text)
