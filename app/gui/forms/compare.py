"""The Compare page without its widgets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....core.errors import DPDMDError, LoraError, SettingsError
from ....core.families import FAMILY_LABELS, Detection, check_files, identify
from ....core.files.tensor_file import read_header
from ....core.recipe.recipe import Recipe, read_recipe
from ... import jobs
from ...config.knobs import parse_resolutions
from ...config.request import parse_seeds
from ...jobs import Job
from ...library import choices as sources
from ...library import surroundings
from ...library.home import home
from ..widgets.html import empty, frame
from ..widgets.run_pieces import STATES, Address, report_of
from .changes import (
    Change,
    FormError,
    Values,
    belongs_to,
    failed,
    noted_at,
    started,
    text_of,
    write_prompts,
)
from .distill import chosen_loras, prompts_of
from .trainer import before_start

NOTES = ("models", "prompts", "settings", "start")
FORM: Values = {
    "checkpoint": "",
    "loras": [],
    "strengths": "",
    "styles": [],
    "style_strengths": "",
    "prompts": "",
    "seeds": "0-8",
    "teacher_steps": "",
    "guidance_scale": "",
    "resolution": "",
    "baseline": True,
    "title": "",
}
"""The controls of the form and what they begin with."""
MAX_LORAS = 8
LOOKED_AT = 12
"""Files of each kind whose headers are read for a pair to begin with."""


def initial() -> Values:
    """The values to begin with."""
    return FORM | {"checkpoint": sources.checkpoints()[0][1]}


def submit(values: Mapping[str, Any]) -> Values:
    """Queue the comparison that the form describes; `selected` is the new job's id."""
    try:
        models, settings = _models(values), _settings(values)
        folder = new_folder(home() / "comparisons" / time.strftime("%Y%m%d-%H%M%S"))
        prompts = _prompts(values, folder)
        before_start()
        job = jobs.submit_task(
            "compare",
            [*models, *settings, *prompts, "--output", str(folder), "--json"],
            text_of(values, "title") or "Comparison",
        )
    except DPDMDError as error:
        return failed(NOTES, error)
    return started(NOTES, job)


@belongs_to("models")
def _models(values: Mapping[str, Any]) -> list[str]:
    checkpoint = sources.model_path(values.get("checkpoint"))
    detection = check_files(checkpoint, {})
    arguments = [str(checkpoint)]
    for names, strengths, option in (
        ("loras", "strengths", "--lora"),
        ("styles", "style_strengths", "--with-lora"),
    ):
        chosen = chosen_loras(values, names, strengths)
        if len(chosen) > MAX_LORAS:
            raise LoraError(f"{len(chosen)} LoRAs were chosen; up to {MAX_LORAS} are compared.")
        if option == "--lora" and not chosen:
            raise LoraError("Choose at least one few-step LoRA to compare with its checkpoint.")
        if option == "--lora":
            for path, _ in chosen:
                _check_pair(detection, path)
        arguments += [f"{option}={path}:{strength:g}" for path, strength in chosen]
    return arguments


def _check_pair(detection: Detection, lora: Path) -> None:
    """Raise LoraError if a few-step LoRA says that it is for another kind of checkpoint."""
    recipe = read_recipe(read_header(lora).metadata)
    if recipe is None:
        return
    made_for = f"{FAMILY_LABELS[recipe.family]} of {recipe.prediction}-prediction"
    found = f"{FAMILY_LABELS[detection.family]} of {detection.prediction}-prediction"
    if made_for != found:
        raise LoraError(
            f"{lora.name} was made for {made_for}; this checkpoint is {found}. A LoRA is compared "
            "with a checkpoint of its own kind: choose another of either."
        )


@noted_at("models")
def look_at_pair(values: Mapping[str, Any]) -> Values:
    """What is wrong with the chosen checkpoint and LoRAs, said as soon as they are chosen."""
    if values.get("checkpoint") and values.get("loras"):
        _models(values)
    return {"models_note": ""}


def first_pair(loras: sources.Choices) -> Values:
    """A checkpoint and a LoRA of it, the newest of ours first; without a pair no LoRA is chosen."""
    loaded = surroundings.current.checkpoint() if surroundings.current.listed else None
    every = [value for _, value in sources.checkpoints()]
    own = [str(loaded)] if loaded is not None and str(loaded) in every else []
    order = list(dict.fromkeys([*own, *every]))
    kinds: dict[str, Detection | None] = {}
    for _, lora in loras[:LOOKED_AT]:
        recipe = _recipe(lora)
        if recipe is None:
            continue
        teacher = Path(recipe.teacher_name or "").stem
        for checkpoint in sorted(order, key=lambda path: Path(path).stem != teacher)[:LOOKED_AT]:
            if checkpoint not in kinds:
                kinds[checkpoint] = _kind(checkpoint)
            kind = kinds[checkpoint]
            if kind and (kind.family, kind.prediction) == (recipe.family, recipe.prediction):
                return {"checkpoint": checkpoint, "loras": [lora]}
    return {"checkpoint": order[0], "loras": []}


def _recipe(lora: str) -> Recipe | None:
    try:
        return read_recipe(read_header(Path(lora)).metadata)
    except (DPDMDError, OSError):
        return None


def _kind(checkpoint: str) -> Detection | None:
    try:
        return identify(Path(checkpoint))
    except (DPDMDError, OSError):
        return None


@belongs_to("settings")
def _settings(values: Mapping[str, Any]) -> list[str]:
    seeds = text_of(values, "seeds") or "0-8"
    parse_seeds(seeds)
    arguments = [f"--seeds={seeds}", *_numbers(values)]
    resolution = text_of(values, "resolution")
    if resolution:
        parse_resolutions(resolution)
        arguments.append(f"--resolution={resolution}")
    return [*arguments, "--rival" if values.get("baseline", True) else "--no-rival"]


def _numbers(values: Mapping[str, Any]) -> list[str]:
    """Options for what may be left empty."""
    found = []
    for name, label, kind in (
        ("teacher_steps", "Steps of the checkpoint", int),
        ("guidance_scale", "Guidance of the checkpoint", float),
    ):
        text = text_of(values, name)
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
    if text_of(values, "prompts"):
        return [write_prompts(folder / "prompts.txt", prompts_of(values).prompts)]
    if sources.is_embedded(sources.model_path(values.get("checkpoint"))):
        return []
    raise FormError("prompts", "Write a few prompts, one a line; best such as were not trained on.")


def new_folder(wanted: Path) -> Path:
    """That folder, or with a number behind it the first that is not there, nor a zip of it."""
    folder, count = wanted, 1
    while folder.exists() or folder.with_name(f"{folder.name}.zip").exists():
        count += 1
        folder = wanted.with_name(f"{wanted.name}-{count}")
    return folder


def listing(kind: str = "compare") -> Change:
    """Jobs of a kind to choose from, newest first: the newest finished one is chosen, if any."""
    found = [job for job in jobs.all_jobs() if job.kind == kind]
    newest = next((job for job in found if job.state == "finished"), found[0] if found else None)
    choices = [(f"{job.title}{_state(job)}, {_when(job.created_at)}", job.id) for job in found]
    return Change(choices=choices, value=newest.id if newest else None)


def _state(job: Job) -> str:
    return "" if job.state == "finished" else f" ({STATES[job.state].lower()})"


def _when(seconds: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(seconds)) if seconds else ""


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
