"""The Distill page without its widgets: values in, values and messages out.

The notes of this page are `checkpoint_note`, `prompts_note`, `settings_note`, `loras_note`,
`output_note` and `start_note`: each belongs to the controls above it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....core.errors import (
    CheckpointError,
    DPDMDError,
    LoraError,
    OutputError,
    PromptError,
    SettingsError,
)
from ....core.families import Detection, identify
from ....core.files import atomic_write
from ... import jobs
from ...config.presets import DEMO, PRESETS, preset
from ...config.request import DistillRequest, ModelFiles, TeacherLora
from ...library import choices as sources
from ...library import preferences, surroundings
from ...prompts.reading import PromptList, parse_prompts
from ...runs.settings_file import config_text, read_settings
from ..widgets.html import note
from .changes import Change, Values, errors
from .controls import config_of, controls
from .trainer import before_start

KEEP, DEMO_PRESET = "keep", "demo"
NOTES = ("checkpoint", "prompts", "settings", "loras", "output", "start")
PLACES = {
    "checkpoint": "Checkpoint",
    "prompts": "Prompts",
    "settings": "Settings",
    "loras": "LoRAs in the teacher",
    "output": "Where it goes",
}
OTHER_FILES = ("clip_l", "clip_g", "t5", "vae")
FORM = (
    "checkpoint",
    *OTHER_FILES,
    "prompts",
    "memory",
    "teacher_loras",
    "strengths",
    "include_teacher_loras",
    "output_folder",
    "name",
    "file_format",
)
MODEL_KINDS: tuple[tuple[type[DPDMDError], str], ...] = (
    (LoraError, "loras"),
    (CheckpointError, "checkpoint"),
    (PromptError, "prompts"),
    (SettingsError, "settings"),
    (OutputError, "output"),
)
MAX_REMEMBERED_PROMPTS = 200_000


class FormError(DPDMDError):
    """What is wrong, and which part of the form it belongs to."""

    def __init__(self, part: str, error: DPDMDError | str) -> None:
        super().__init__(str(error))
        self.part = part


def names() -> tuple[str, ...]:
    """Every value of the form."""
    return FORM + tuple(controls())


def initial() -> Values:
    """The values to begin with: what was last used, else the demo or defaults."""
    values: Values = dict.fromkeys(FORM, "")
    values |= {"memory": KEEP, "teacher_loras": [], "include_teacher_loras": False}
    values |= {"file_format": "kohya", "name": "my-4step"}
    values |= _defaults()
    listed = surroundings.current.listed
    remembered = preferences.load().distill if listed else {}
    values |= {name: value for name, value in remembered.items() if name in values}
    values["output_folder"] = str(sources.output_folder())
    try:
        config_of(values)
    except DPDMDError:  # of another version
        values |= _defaults()
    loaded = surroundings.current.checkpoint() if listed else None
    if loaded is not None:
        values["checkpoint"] = str(loaded)
    if not values["checkpoint"]:
        values["checkpoint"] = sources.checkpoints()[0][1]
        if listed and Path(values["checkpoint"]).parent == sources.ASSETS:
            values |= _demo()
    values["name"] = sources.free_output(values["output_folder"], str(values["name"]))
    return values


def _defaults() -> Values:
    return {item.name: item.default for item in controls().values()}


def _demo() -> Values:
    """A first visit where no checkpoint was found: one click distils the embedded one."""
    prompts = sources.starter(sources.SHAPES)
    return dict(DEMO) | {"memory": DEMO_PRESET, "prompts": prompts, "name": "shapes-4step"}


def memory_choices(detection: Detection | None, embedded: bool) -> sources.Choices:
    """Presets by the card's memory for what was detected."""
    choices = [("Leave the settings as they are", KEEP)]
    if embedded:
        choices.append(("Demo: a few minutes on any computer", DEMO_PRESET))
    elif detection is not None:
        sizes = PRESETS[detection.family]
        choices += [(f"{size.removesuffix('gb')} GB", size) for size in sizes]
    return choices


def apply_preset(values: Mapping[str, Any]) -> Values:
    """The settings of the chosen preset; what no preset touches stays."""
    chosen = values.get("memory") or KEEP
    if chosen == KEEP:
        return {}
    try:
        if chosen == DEMO_PRESET:
            return dict(DEMO) | {"settings_note": ""}
        detection = identify(sources.model_path(values.get("checkpoint")))
        touched = {name for sizes in PRESETS.values() for found in sizes.values() for name in found}
        defaults = {name: controls()[name].default for name in touched}
        return defaults | preset(detection.family, chosen) | {"settings_note": ""}
    except DPDMDError as error:
        return errors(("settings",), {"settings": error})


def apply_settings(values: Mapping[str, Any]) -> Values:
    """The settings of an uploaded file, or of a LoRA made here ("distil again like this")."""
    uploaded, lora = values.get("settings_upload"), values.get("settings_lora")
    try:
        if uploaded:
            config = read_settings(Path(uploaded))
        elif lora:
            config = read_settings(sources.lora_path(lora, jobs.made_loras()))
        else:
            raise SettingsError("Choose a LoRA or a settings file first.")
    except DPDMDError as error:
        return errors(("import",), {"import": error})
    found: Values = config.to_dict() | {"memory": KEEP, "settings_note": ""}
    return found | {"import_note": note("These settings are now in the form.", "done")}


def export(values: Mapping[str, Any]) -> Values:
    """A settings file to download, without paths and prompts."""
    try:
        text = config_text(config_of(values))
    except DPDMDError as error:
        return errors(("import",), {"import": error})
    path = Path(tempfile.mkdtemp(prefix="dpdmd-")) / "dpdmd-settings.json"
    atomic_write.write_text(path, text)
    return {"settings_download": Change(value=str(path), visible=True)} | errors(("import",), {})


def prompts_of(values: Mapping[str, Any]) -> PromptList:
    """The prompts in the form, or FormError."""
    try:
        return parse_prompts(str(values.get("prompts") or ""), "The prompts field")
    except DPDMDError as error:
        raise FormError("prompts", error) from error


def request_of(values: Mapping[str, Any]) -> DistillRequest:
    """The request that the form describes, or FormError for the part that is wrong."""
    try:
        config = config_of(values)
    except DPDMDError as error:
        raise FormError("settings", error) from error
    return DistillRequest(
        model=_model_files(values),
        config=config,
        output=_output(values),
        file_format="peft" if values.get("file_format") == "peft" else "kohya",
        teacher_loras=_teacher_loras(values),
        include_teacher_loras=bool(values.get("include_teacher_loras")),
        created_at=time.time(),
    )


def _model_files(values: Mapping[str, Any]) -> ModelFiles:
    try:
        found = {
            name: str(sources.model_path(values[name]))
            for name in OTHER_FILES
            if str(values.get(name) or "").strip()
        }
        return ModelFiles(checkpoint=str(sources.model_path(values.get("checkpoint"))), **found)
    except DPDMDError as error:
        raise FormError("checkpoint", error) from error


def _output(values: Mapping[str, Any]) -> str:
    try:
        return str(sources.chosen_output(values.get("output_folder"), values.get("name")))
    except DPDMDError as error:
        raise FormError("output", error) from error


def _teacher_loras(values: Mapping[str, Any]) -> tuple[TeacherLora, ...]:
    try:
        paths = [
            sources.lora_path(item, jobs.made_loras()) for item in values.get("teacher_loras") or []
        ]
        strengths = strengths_of(values.get("strengths"), len(paths))
    except DPDMDError as error:
        raise FormError("loras", error) from error
    pairs = zip(paths, strengths, strict=True)
    return tuple(TeacherLora(path=str(path), strength=strength) for path, strength in pairs)


def strengths_of(text: object, count: int) -> list[float]:
    """As many strengths as LoRAs, from "0.8, 1": what is not named is 1.

    Raises:
        LoraError: no number, too many, or outside -10 to 10.
    """
    parts = [part.strip() for part in str(text or "").split(",") if part.strip()]
    try:
        found = [float(part) for part in parts]
    except ValueError as error:
        raise LoraError(f"Strengths are numbers such as 0.8, 1; found {text}.") from error
    if len(found) > count or not all(-10 <= value <= 10 for value in found):
        raise LoraError(
            f"{len(found)} strengths for {count} LoRAs; name at most one each, from -10 to 10."
        )
    return found + [1.0] * (count - len(found))


def submit(values: Mapping[str, Any]) -> Values:
    """Queue the run that the form describes; `selected` is the new job's id.

    Where something is wrong its part's note says so, and nothing that was typed is lost.
    """
    try:
        request, prompts = request_of(values), prompts_of(values)
        before_start()
        job = jobs.submit_distill(request, prompts.prompts, Path(request.output).stem, alone=True)
    except DPDMDError as error:
        return _failed(error)
    text = f"{job.title} is in the queue. Its progress is on the Runs page."
    try:
        remember(values)
    except DPDMDError as error:  # the run itself is safe
        text += f" This form will not be remembered: {error}"
    return errors(NOTES, {}) | {
        "start_note": note(text, "done"),
        "selected": job.id,
        "tabs": Change(selected="runs"),
        "name": sources.free_output(values.get("output_folder"), job.title),
    }


def _failed(error: DPDMDError) -> Values:
    """The notes after a failed start: the message at its place, a pointer at the button."""
    part = error.part if isinstance(error, FormError) else _part_of(error)
    failed: dict[str, DPDMDError | str] = {part: error}
    if part in PLACES:
        failed["start"] = f"Not started: see the note under {PLACES[part]}."
    return errors(NOTES, failed)


def _part_of(error: DPDMDError) -> str:
    return next((part for kind, part in MODEL_KINDS if isinstance(error, kind)), "start")


def remember(values: Mapping[str, Any]) -> None:
    """Keep the form for the next visit; long prompts are not kept."""
    kept = {name: values[name] for name in names() if name in values}
    if len(str(kept.get("prompts") or "")) > MAX_REMEMBERED_PROMPTS:
        kept.pop("prompts")
    folder = str(kept.pop("output_folder", "") or "")
    preferences.remember(distill=kept, output_folder=folder)
