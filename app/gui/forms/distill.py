"""The Distill page without its widgets: values in, values and messages out.

The notes of this page are `checkpoint_note`, `prompts_note`, `settings_note`, `loras_note`,
`output_note` and `start_note`: each belongs to the controls above it.
"""

from __future__ import annotations

import re
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
from ...config.distill_config import DistillConfig
from ...config.presets import DEMO, PRESETS, preset, presets_of
from ...config.request import OTHER_FILES, DistillRequest, ModelFiles, TeacherLora
from ...library import choices as sources
from ...library import preferences, surroundings
from ...prompts.reading import PromptList, parse_prompts
from ...runs.settings_file import config_text, read_settings
from ..widgets.html import error_note, note
from .changes import (
    Change,
    FormError,
    Values,
    belongs_to,
    failed,
    noted_at,
    started,
    text_of,
)
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
FORM: Values = {
    "checkpoint": "",
    **dict.fromkeys(OTHER_FILES, ""),
    "prompts": "",
    "memory": KEEP,
    "teacher_loras": [],
    "strengths": "",
    "include_teacher_loras": False,
    "output_folder": "",
    "name": "my-4step",
    "file_format": "kohya",
}
"""The controls of the form beside the settings, and what they begin with."""
PARTS: dict[type[DPDMDError], str] = {
    LoraError: "loras",
    CheckpointError: "checkpoint",
    PromptError: "prompts",
    SettingsError: "settings",
    OutputError: "output",
}
MAX_REMEMBERED_PROMPTS = 200_000
NO_PROMPTS = "There are no prompts yet: write some, or choose starter prompts and press Use these."
NOT_WRITTEN = "unused.safetensors"


def names() -> tuple[str, ...]:
    """Every value of the form."""
    return (*FORM, *controls())


def initial() -> Values:
    """The values to begin with: what was last used, else the demo or defaults."""
    values = FORM | DistillConfig().to_dict()
    listed = surroundings.current.listed
    remembered = preferences.load().distill if listed else {}
    values |= {name: value for name, value in remembered.items() if name in values}
    values["output_folder"] = str(sources.output_folder())
    try:
        config_of(values)
    except DPDMDError:  # of another version
        values |= DistillConfig().to_dict()
    loaded, clip_skip = hosts()
    if loaded is not None:
        values["checkpoint"] = loaded
    if clip_skip is not None and "clip_skip" not in remembered:
        values["clip_skip"] = clip_skip
    values |= _leave_demo(values)
    if not values["checkpoint"]:
        values["checkpoint"] = sources.checkpoints()[0][1]
        if listed and Path(values["checkpoint"]).parent == sources.ASSETS:
            values |= _demo(Path(values["checkpoint"]))
    values["name"] = sources.free_output(values["output_folder"], str(values["name"]))
    return values


def hosts() -> list[object]:
    """[the checkpoint that is chosen in the host, its clip skip]; None for what it does not say."""
    around = surroundings.current
    loaded = around.checkpoint() if around.listed else None
    return [str(loaded) if loaded is not None else None, around.clip_skip()]


def follow(values: Mapping[str, Any]) -> Values:
    """The host's checkpoint and clip skip where they are other ones than when it was last asked.

    Args:
        values: `hosts` is what was said then.
    """
    before, now = list(values.get("hosts") or [None, None]), hosts()
    changed = {
        name: value
        for name, old, value in zip(("checkpoint", "clip_skip"), before, now, strict=True)
        if value is not None and value != old
    }
    return changed | {"hosts": now}


def take(values: Mapping[str, Any]) -> Values:
    """The host's checkpoint and clip skip, whatever stands in the form."""
    return follow({"hosts": [None, None]})


def _demo(checkpoint: Path) -> Values:
    """A first visit where no checkpoint was found: one click distils the embedded one."""
    world = sources.embedded_world(checkpoint)
    prompts = sources.starter(world)
    return dict(DEMO) | {"memory": DEMO_PRESET, "prompts": prompts, "name": f"{world}-4step"}


def fit_demo(values: Mapping[str, Any]) -> Values:
    """What changes in the form when another checkpoint is chosen.

    A demo checkpoint brings settings, prompts and a name with which one click distils it, where the
    form holds nothing of the person's own; any other takes them out again.
    """
    checkpoint = Path(text_of(values, "checkpoint"))
    if not sources.is_embedded(checkpoint):
        return _leave_demo(values)
    if values.get("memory") != KEEP or any(values.get(n) != controls()[n].default for n in DEMO):
        return {}
    found = _demo(checkpoint)
    if text_of(values, "prompts"):
        del found["prompts"]
    if _is_free_name(values, FORM["name"]):
        found["name"] = sources.free_output(values.get("output_folder"), found["name"])
    else:
        del found["name"]
    return found


def _leave_demo(values: Mapping[str, Any]) -> Values:
    """The defaults in place of the demo's settings, where another checkpoint has taken its place:
    they suit none of full size."""
    checkpoint = text_of(values, "checkpoint")
    if values.get("memory") != DEMO_PRESET or not checkpoint:
        return {}
    if sources.is_embedded(Path(checkpoint)):
        return {}
    found: Values = {name: controls()[name].default for name in DEMO} | {"memory": KEEP}
    for world in sources.embedded_worlds():
        if text_of(values, "prompts") == sources.starter(world).strip():
            found["prompts"] = ""
        if _is_free_name(values, f"{world}-4step"):
            found["name"] = sources.free_output(values.get("output_folder"), FORM["name"])
    return found


def _is_free_name(values: Mapping[str, Any], name: str) -> bool:
    """Whether the form still proposes that name, or one with a number after it."""
    return re.fullmatch(rf"{re.escape(name)}(-\d+)?", text_of(values, "name")) is not None


def memory_choices(detection: Detection | None, embedded: bool) -> sources.Choices:
    """Presets by the card's memory for what was detected."""
    choices = [("Leave the settings as they are", KEEP)]
    if embedded:
        choices.append(("Demo: a few minutes on any computer", DEMO_PRESET))
    elif detection is not None:
        sizes = presets_of(detection.family, detection.title)
        choices += [(f"{size.removesuffix('gb')} GB", size) for size in sizes]
    return choices


@noted_at("settings")
def apply_preset(values: Mapping[str, Any]) -> Values:
    """The settings of the chosen preset; what no preset touches stays."""
    chosen = values.get("memory") or KEEP
    if chosen == KEEP:
        return {}
    if chosen == DEMO_PRESET:
        return dict(DEMO) | {"settings_note": ""}
    detection = identify(sources.model_path(values.get("checkpoint")))
    touched = {name for sizes in PRESETS.values() for found in sizes.values() for name in found}
    defaults = {name: controls()[name].default for name in touched}
    return defaults | preset(detection.family, detection.title, chosen) | {"settings_note": ""}


@noted_at("import")
def apply_settings(values: Mapping[str, Any]) -> Values:
    """The settings of an uploaded file, or of a LoRA made here ("distil again like this")."""
    uploaded, lora = values.get("settings_upload"), values.get("settings_lora")
    if not uploaded and not lora:
        raise SettingsError("Choose a LoRA or a settings file first.")
    config = read_settings(
        Path(uploaded) if uploaded else sources.lora_path(lora, jobs.made_loras())
    )
    found: Values = config.to_dict() | {"memory": KEEP, "settings_note": ""}
    return found | {"import_note": note("These settings are now in the form.", "done")}


@noted_at("import")
def export(values: Mapping[str, Any]) -> Values:
    """A settings file to download, without paths and prompts."""
    text = config_text(config_of(values))
    path = Path(tempfile.mkdtemp(prefix="dpdmd-")) / "dpdmd-settings.json"
    atomic_write.write_text(path, text)
    return {"settings_download": Change(value=str(path), visible=True), "import_note": ""}


@belongs_to("prompts")
def prompts_of(values: Mapping[str, Any]) -> PromptList:
    """The prompts in the form, or FormError."""
    if not text_of(values, "prompts"):
        raise PromptError(NO_PROMPTS)
    return parse_prompts(str(values.get("prompts") or ""), "The prompts field")


def request_of(values: Mapping[str, Any], *, writes: bool = True) -> DistillRequest:
    """The request that the form describes, or FormError for the part that is wrong.

    Args:
        writes: whether a LoRA will be written; else where it goes is not looked at.
    """
    with belongs_to("settings"):
        config = config_of(values)
    with belongs_to("checkpoint"):
        model = model_files(values, sources.model_path(values.get("checkpoint")))
    output = Path(NOT_WRITTEN)
    if writes:
        with belongs_to("output"):
            output = sources.chosen_output(values.get("output_folder"), values.get("name"))
    with belongs_to("loras"):
        loras = chosen_loras(values, "teacher_loras", "strengths")
    return DistillRequest(
        model=model,
        config=config,
        output=str(output),
        file_format="peft" if values.get("file_format") == "peft" else "kohya",
        teacher_loras=tuple(TeacherLora(path=str(path), strength=size) for path, size in loras),
        include_teacher_loras=bool(values.get("include_teacher_loras")),
        created_at=time.time(),
    )


def model_files(values: Mapping[str, Any], checkpoint: Path) -> ModelFiles:
    """The checkpoint and the files that are named beside it.

    Raises:
        SettingsError: one of these is in none of the folders.
    """
    named = {name: values[name] for name in OTHER_FILES if text_of(values, name)}
    others = {name: str(sources.model_path(path)) for name, path in named.items()}
    return ModelFiles(checkpoint=str(checkpoint), **others)


def chosen_loras(values: Mapping[str, Any], names: str, strengths: str) -> list[tuple[Path, float]]:
    """(file, strength) of the LoRAs chosen in the control `names`; `strengths` holds "0.8, 1".

    Strengths that are not named are 1.

    Raises:
        SettingsError: a LoRA is in none of the folders.
        LoraError: a strength is no number, too many are named, or one is outside -10 to 10.
    """
    paths = [sources.lora_path(item, jobs.made_loras()) for item in values.get(names) or []]
    text = text_of(values, strengths)
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise LoraError(f"Strengths are numbers such as 0.8, 1; found {text}.") from error
    if len(found) > len(paths) or not all(-10 <= value <= 10 for value in found):
        raise LoraError(
            f"{len(found)} strengths for {len(paths)} LoRAs; name at most one each, from -10 to 10."
        )
    found += [1.0] * (len(paths) - len(found))
    return list(zip(paths, found, strict=True))


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
    try:
        remember(values)
        more = ""
    except DPDMDError as error:  # the run itself is safe
        more = f" This form will not be remembered: {error}"
    free = sources.free_output(values.get("output_folder"), job.title)
    return started(NOTES, job, more) | {"name": free}


def check(values: Mapping[str, Any]) -> Values:
    """Queue a check of the checkpoint with what the form holds; `selected` is the job's id.

    Prompts may be missing, and nothing is said of where a LoRA would go.
    """
    try:
        request = request_of(values, writes=False)
        prompts = prompts_of(values).prompts if text_of(values, "prompts") else ()
        before_start()
        job = jobs.submit_check(request, prompts)
    except DPDMDError as error:
        return _failed(error)
    return started(NOTES, job)


def _failed(error: DPDMDError) -> Values:
    """The notes after a failed start: the message at its place, a pointer at the button."""
    if not isinstance(error, FormError):  # of the queue, which checks all of it again
        kind = next((part for kind, part in PARTS.items() if isinstance(error, kind)), "start")
        error = FormError(kind, error)
    notes = failed(NOTES, error)
    if error.part in PLACES:
        pointer = f"Not started: see the note under {PLACES[error.part]}."
        notes["start_note"] = error_note(pointer)
    return notes


def remember(values: Mapping[str, Any]) -> None:
    """Keep the form for the next visit; long prompts are not kept."""
    kept = {name: values[name] for name in names() if name in values}
    if len(str(kept.get("prompts") or "")) > MAX_REMEMBERED_PROMPTS:
        kept.pop("prompts")
    folder = str(kept.pop("output_folder", "") or "")
    preferences.remember(distill=kept, output_folder=folder)
