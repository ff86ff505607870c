"""The Compare page without its widgets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....core.errors import DPDMDError, LoraError, OutputError, PromptError, SettingsError
from ....core.families import identify
from ....core.files import atomic_write
from ... import jobs
from ...config.knobs import parse_resolutions
from ...config.request import parse_seeds
from ...library import choices as sources
from ...library.home import home
from ...prompts.reading import parse_prompts
from ..widgets.html import empty, frame, note
from ..widgets.run_pieces import STATES, report_of
from ..widgets.runs_view import Address
from .changes import Change, Values, errors
from .distill import strengths_of
from .trainer import TrainerMissingError, before_start

NOTES = ("models", "prompts", "settings", "start")
FORM = (
    "checkpoint",
    "loras",
    "strengths",
    "styles",
    "style_strengths",
    "prompts",
    "seeds",
    "teacher_steps",
    "guidance_scale",
    "resolution",
    "baseline",
    "title",
)
MAX_LORAS = 8


def initial() -> Values:
    """The values to begin with."""
    values: Values = dict.fromkeys(FORM, "") | {"loras": [], "styles": [], "baseline": True}
    known = sources.checkpoints()
    return values | {"seeds": "0-8", "checkpoint": known[0][1]}


def submit(values: Mapping[str, Any]) -> Values:
    """Queue the comparison that the form describes; `selected` is the new job's id."""
    try:
        title = str(values.get("title") or "").strip() or "Comparison"
        models = _models(values)
        settings = _settings(values)
        folder = new_folder("comparisons")
        prompts = _prompts(values, folder)
        before_start()
        job = jobs.submit_task(
            "compare", [*models, *settings, *prompts, "--output", str(folder), "--json"], title
        )
    except DPDMDError as error:
        return errors(NOTES, {_part_of(error): error})
    text = f"{job.title} is in the queue. Its progress is on the Runs page."
    return errors(NOTES, {}) | {
        "start_note": note(text, "done"),
        "selected": job.id,
        "tabs": Change(selected="runs"),
    }


def _part_of(error: DPDMDError) -> str:
    if isinstance(error, PromptError):
        return "prompts"
    if isinstance(error, _SettingError):
        return "settings"
    return "start" if isinstance(error, OutputError | TrainerMissingError) else "models"


class _SettingError(SettingsError):
    """One of the page's own settings is wrong."""


def _models(values: Mapping[str, Any]) -> list[str]:
    checkpoint = sources.model_path(values.get("checkpoint"))
    identify(checkpoint)
    arguments = [str(checkpoint)]
    for names, strengths, option in (
        ("loras", "strengths", "--lora"),
        ("styles", "style_strengths", "--with-lora"),
    ):
        paths = [sources.lora_path(item, jobs.made_loras()) for item in values.get(names) or []]
        if len(paths) > MAX_LORAS:
            raise LoraError(f"{len(paths)} LoRAs were chosen; up to {MAX_LORAS} are compared.")
        found = strengths_of(values.get(strengths), len(paths))
        for path, strength in zip(paths, found, strict=True):
            arguments.append(f"{option}={path}:{strength:g}")
    if not any(word.startswith("--lora=") for word in arguments):
        raise LoraError("Choose at least one few-step LoRA to compare with its checkpoint.")
    return arguments


def _settings(values: Mapping[str, Any]) -> list[str]:
    arguments = []
    try:
        seeds = str(values.get("seeds") or "0-8").strip()
        parse_seeds(seeds)
        arguments.append(f"--seeds={seeds}")
        arguments += _numbers(values)
        resolution = str(values.get("resolution") or "").strip()
        if resolution:
            parse_resolutions(resolution)
            arguments.append(f"--resolution={resolution}")
    except SettingsError as error:
        raise _SettingError(str(error)) from error
    return [*arguments, "--rival" if values.get("baseline", True) else "--no-rival"]


def _numbers(values: Mapping[str, Any]) -> list[str]:
    """Options for what may be left empty."""
    found = []
    for name, label, kind in (
        ("teacher_steps", "Steps of the checkpoint", int),
        ("guidance_scale", "Guidance of the checkpoint", float),
    ):
        text = str(values.get(name) or "").strip()
        if not text:
            continue
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not 0 < value <= 1000:
            raise SettingsError(f"{label} is {text}; a number above 0 was expected, or nothing.")
        found.append(f"--{name.replace('_', '-')}={value:g}")
    return found


def _prompts(values: Mapping[str, Any], folder: Path) -> list[str]:
    text = str(values.get("prompts") or "")
    if not text.strip():
        if sources.is_embedded(sources.model_path(values.get("checkpoint"))):
            return []
        raise PromptError("Write a few prompts, one a line; best such as were not trained on.")
    found = parse_prompts(text, "The prompts field")
    path = folder / "prompts.txt"
    with atomic_write.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write.write_text(path, "\n".join(found.prompts) + "\n")
    return [f"--prompts={path}"]


def new_folder(kind: str) -> Path:
    """A folder in the data folder that is not there yet; not made."""
    stem = home() / kind / time.strftime("%Y%m%d-%H%M%S")
    folder, count = stem, 1
    while folder.exists():
        count += 1
        folder = stem.with_name(f"{stem.name}-{count}")
    return folder


def finished(kind: str = "compare") -> sources.Choices:
    """Jobs of a kind, newest first, with their state where they are not done."""
    found = []
    for job in jobs.all_jobs():
        if job.kind == kind:
            state = "" if job.state == "finished" else f" ({STATES[job.state].lower()})"
            found.append((f"{job.title}{state}, {_when(job.created_at)}", job.id))
    return found


def _when(seconds: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(seconds)) if seconds else ""


def listing(kind: str = "compare") -> Change:
    """Jobs of a kind to choose from: the newest finished one is chosen, else the newest."""
    choices = finished(kind)
    done = [value for label, value in choices if jobs.get_job(value).state == "finished"]
    return Change(choices=choices, value=(done or [value for _, value in choices] or [None])[0])


def show(chosen: object, address: Address | None = None) -> Values:
    """The report of a comparison, or how far it is."""
    if not chosen:
        text = "A comparison shows seed grids of the checkpoint and of each LoRA side by side."
        return {"report": empty("No comparison yet", text)}
    try:
        job = jobs.get_job(str(chosen))
    except DPDMDError as error:
        return {"report": empty("Not there any more", str(error))}
    path = report_of(job)
    if path is None:
        said = f"{STATES[job.state]}. {job.message}"
        return {"report": empty(job.title, said)}
    page = frame(f"Report of {job.title}", address=address(job) if address else None, path=path)
    return {"report": page}
