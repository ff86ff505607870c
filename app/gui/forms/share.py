"""The Share page without its widgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....core.errors import CheckpointError, DPDMDError
from ....core.families import identify
from ... import jobs
from ...config.request import DistillRequest
from ...jobs import Job
from ...library import choices as sources
from ...library.home import home
from ...runs.directory import RunDirectory
from ...share.labels import base_model_choices, base_model_note
from ...share.names import safe_name
from ..widgets import html
from ..widgets.run_pieces import STATES, result_path
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
from .compare import listing, new_folder
from .distill import prompts_of
from .trainer import before_start

NOTES = ("source", "words", "prompts", "start")
FEWEST, MOST, USUAL = 6, 24, 8
FORM: Values = {
    "source": "",
    "checkpoint": "",
    "name": "",
    "author": "",
    "license": "",
    "base_model": "",
    "trigger_words": "",
    "prompts": "",
    "count": USUAL,
}
"""The controls of the form and what they begin with."""
RUN = "run:"
MAX_WORDS = 200


def source_choices() -> sources.Choices:
    """Runs that have written a LoRA, then LoRAs of the folders."""
    runs = [
        (f"{job.title} (run, {STATES[job.state].lower()})", RUN + job.id) for job in _distilled()
    ]
    written = {str(job.result.get("lora")) for job in jobs.all_jobs()}
    return runs + [
        choice for choice in sources.loras(jobs.made_loras()) if choice[1] not in written
    ]


def choices(values: Mapping[str, Any]) -> Values:
    """What can be shared, and the packages made so far."""
    found = source_choices()
    known = [value for _, value in found]
    source = values.get("source") if values.get("source") in known else (known or [None])[0]
    return {"source": Change(choices=found, value=source), "chosen": listing("package")}


@noted_at("source")
def describe(values: Mapping[str, Any]) -> Values:
    """The checkpoint that belongs to the source, its labels, and a name."""
    job = _job(values.get("source"))
    stem = Path(str(job.result.get("lora") or "") if job else text_of(values, "source")).stem
    checkpoint = _checkpoint_of(job) if job else values.get("checkpoint")
    found: Values = {"name": stem, "checkpoint": checkpoint or None, "source_note": ""}
    if not checkpoint:
        return found | {"base_model": Change(choices=[], value=None)}
    return found | labels({"checkpoint": checkpoint})


@noted_at("source")
def labels(values: Mapping[str, Any]) -> Values:
    """The labels that Civitai offers for the checkpoint, with what to know of them."""
    if not values.get("checkpoint"):
        return {}
    path = _checkpoint(values)
    detection, embedded = identify(path), sources.is_embedded(path)
    choices = base_model_choices(detection.family, detection.title, embedded=embedded)
    note = base_model_note(detection.family, detection.title, embedded=embedded)
    return {
        "base_model": Change(choices=[(label, label) for label in choices], value=choices[0]),
        "label_note": html.note(note),
        "source_note": "",
    }


def _job(source: object) -> Job | None:
    text = str(source or "")
    return jobs.get_job(text.removeprefix(RUN)) if text.startswith(RUN) else None


def _distilled() -> list[Job]:
    """The runs that have written a LoRA."""
    return [job for job in jobs.all_jobs() if job.kind == "distill" and result_path(job, "lora")]


def _checkpoint_of(job: Job) -> str:
    request = DistillRequest.from_dict(RunDirectory.open(job.path).settings())
    return request.model.checkpoint


def _checkpoint(values: Mapping[str, Any]) -> Path:
    """The checkpoint: one of the folders, or the one that a run names itself."""
    text = text_of(values, "checkpoint")
    own = text and text in map(_checkpoint_of, _distilled())
    return Path(text) if own else sources.model_path(text)


def submit(values: Mapping[str, Any]) -> Values:
    """Queue the package that the form describes; `selected` is the new job's id."""
    try:
        name, arguments = _name(values), _source(values)
        arguments += _words(values)
        output = new_folder(home() / "packages" / safe_name(name))
        arguments += _prompts(values, output)
        before_start()
        job = jobs.submit_task(
            "package", [*arguments, "--output", str(output), "--json"], f"Package {name}"
        )
    except DPDMDError as error:
        return failed(NOTES, error)
    return started(NOTES, job)


@belongs_to("source")
def _source(values: Mapping[str, Any]) -> list[str]:
    if not values.get("source"):
        raise CheckpointError("Choose a run or a LoRA to share.")
    job = _job(values["source"])
    source = job.path if job else sources.lora_path(values["source"], jobs.made_loras())
    if text_of(values, "checkpoint"):
        return [str(source), str(_checkpoint(values))]
    if job is None:
        raise CheckpointError("Choose the checkpoint that this LoRA was made of.")
    return [str(source)]


def _name(values: Mapping[str, Any]) -> str:
    name = text_of(values, "name")
    if not name or len(name) > 80:
        raise FormError(
            "words", "Give it a name of up to 80 characters; the files are named by it."
        )
    return name


def _words(values: Mapping[str, Any]) -> list[str]:
    found = [f"--name={_name(values)}"]
    for name in ("author", "license", "base_model", "trigger_words"):
        text = text_of(values, name)
        if len(text) > MAX_WORDS or any(ord(letter) < 32 for letter in text):
            label = name.replace("_", " ").capitalize()
            raise FormError("words", f"{label} has up to {MAX_WORDS} characters, on one line.")
        if text:
            found.append(f"--{name.replace('_', '-')}={text}")
    count = values.get("count") or USUAL
    if not isinstance(count, (int, float)) or not FEWEST <= count <= MOST:
        raise FormError("words", f"{count} images; from {FEWEST} to {MOST} are made.")
    return [*found, f"--count={int(count)}"]


def _prompts(values: Mapping[str, Any], output: Path) -> list[str]:
    if text_of(values, "prompts"):
        path = output.with_name(f"{output.name}.prompts.txt")
        return [write_prompts(path, prompts_of(values).prompts)]
    if _job(values.get("source")) is None:
        raise FormError("prompts", "Write prompts for the preview images, one a line.")
    return []


def show(chosen: object) -> Values:
    """A package: its folder, its zip file, the cover and the description."""
    blank: Values = {
        "package": "",
        "zip": Change(value=None, visible=False),
        "description": Change(value="", visible=False),
    }
    if not chosen:
        text = (
            "A package is a folder and a zip: the LoRA, previews whose settings sites read, a "
            "description, cards for Civitai, A1111 and Hugging Face, and a ComfyUI workflow."
        )
        return blank | {"package": html.empty("No package yet", text)}
    try:
        job = jobs.get_job(str(chosen))
    except DPDMDError as error:
        return blank | {"package": html.empty("Not there any more", str(error))}
    folder, packed, cover = (result_path(job, name) for name in ("folder", "zip", "cover"))
    if folder is None:
        said = f"{STATES[job.state]}. {job.message}"
        return blank | {"package": html.empty(job.title, said)}
    shown = html.render(
        "package.html",
        title=job.title,
        folder=str(folder),
        cover=html.encoded_image(cover) if cover else "",
        names=sorted(path.name for path in folder.iterdir() if path.is_file()),
    )
    found: Values = {"package": shown}
    if packed:
        found["zip"] = Change(value=str(packed), visible=True)
    path = folder / "description.html"
    if path.is_file():
        frame = html.frame("Description", address=None, path=path, plain=True)
        found["description"] = Change(value=frame, visible=True)
    return blank | found
