"""The Share page without its widgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....core.errors import CheckpointError, DPDMDError, OutputError, PromptError, SettingsError
from ....core.families import identify
from ....core.files import atomic_write
from ... import jobs
from ...config.request import DistillRequest
from ...jobs import Job
from ...library import choices as sources
from ...library.home import home
from ...prompts.reading import parse_prompts
from ...runs.directory import RunDirectory
from ...share.labels import base_model_choices, base_model_note
from ...share.names import safe_name
from ..widgets import html
from ..widgets.run_pieces import STATES, result_path
from .changes import Change, Values, errors
from .compare import listing as packages
from .trainer import TrainerMissingError, before_start

NOTES = ("source", "words", "prompts", "start")
FORM = (
    "source",
    "checkpoint",
    "name",
    "author",
    "license",
    "base_model",
    "trigger_words",
    "prompts",
    "count",
)
RUN = "run:"
FEWEST, MOST, USUAL = 6, 24, 8
MAX_WORDS = 200


def initial() -> Values:
    """The values to begin with."""
    return dict.fromkeys(FORM, "") | {"count": USUAL}


def source_choices() -> sources.Choices:
    """Runs that have written a LoRA, then LoRAs of the folders."""
    runs = [
        (f"{job.title} (run, {STATES[job.state].lower()})", RUN + job.id)
        for job in jobs.all_jobs()
        if job.kind == "distill" and result_path(job, "lora")
    ]
    written = {str(job.result.get("lora")) for job in jobs.all_jobs()}
    return runs + [
        choice for choice in sources.loras(jobs.made_loras()) if choice[1] not in written
    ]


def listing(values: Mapping[str, Any]) -> Values:
    """What can be shared, and the packages made so far."""
    choices = source_choices()
    known = [value for _, value in choices]
    source = values.get("source") if values.get("source") in known else (known or [None])[0]
    return {"source": Change(choices=choices, value=source), "chosen": packages("package")}


def describe(values: Mapping[str, Any]) -> Values:
    """The checkpoint that belongs to the source, its labels, and a name."""
    try:
        job = _job(values.get("source"))
        stem = Path(str(job.result["lora"] if job else values.get("source") or "")).stem
        checkpoint = _checkpoint_of(job) if job else values.get("checkpoint")
        found: Values = {"name": stem, "checkpoint": checkpoint or None}
        if not checkpoint:
            return found | {"base_model": Change(choices=[], value=None)} | errors(("source",), {})
        return found | labels({"checkpoint": checkpoint}) | errors(("source",), {})
    except (DPDMDError, KeyError) as error:
        return errors(("source",), {"source": str(error)})


def labels(values: Mapping[str, Any]) -> Values:
    """The labels that Civitai offers for the checkpoint, with what to know of them."""
    if not values.get("checkpoint"):
        return {}
    try:
        path = _checkpoint(values)
        detection, embedded = identify(path), sources.is_embedded(path)
    except DPDMDError as error:
        return errors(("source",), {"source": error})
    choices = base_model_choices(detection.family, detection.title, embedded=embedded)
    note = base_model_note(detection.family, detection.title, embedded=embedded)
    return {
        "base_model": Change(choices=[(label, label) for label in choices], value=choices[0]),
        "label_note": html.note(note),
    } | errors(("source",), {})


def _job(source: object) -> Job | None:
    text = str(source or "")
    return jobs.get_job(text.removeprefix(RUN)) if text.startswith(RUN) else None


def _checkpoint_of(job: Job) -> str:
    request = DistillRequest.from_dict(RunDirectory.open(job.path).settings())
    return request.model.checkpoint


def _checkpoint(values: Mapping[str, Any]) -> Path:
    """The checkpoint: one of the folders, or the one that a run names itself."""
    text = str(values.get("checkpoint") or "")
    known = (
        [
            _checkpoint_of(job)
            for job in jobs.all_jobs()
            if job.kind == "distill" and result_path(job, "lora")
        ]
        if text
        else []
    )
    return Path(text) if text in known else sources.model_path(text)


def submit(values: Mapping[str, Any]) -> Values:
    """Queue the package that the form describes; `selected` is the new job's id."""
    try:
        name, arguments = _name(values), _source(values)
        arguments += _words(values)
        output = _new_package(name)
        arguments += _prompts(values, output)
        before_start()
        job = jobs.submit_task(
            "package", [*arguments, "--output", str(output), "--json"], f"Package {name}"
        )
    except DPDMDError as error:
        return errors(NOTES, {_part_of(error): error})
    text = f"{job.title} is in the queue. Its progress is on the Runs page."
    return errors(NOTES, {}) | {
        "start_note": html.note(text, "done"),
        "selected": job.id,
        "tabs": Change(selected="runs"),
    }


def _part_of(error: DPDMDError) -> str:
    if isinstance(error, _WordError):
        return "words"
    if isinstance(error, PromptError):
        return "prompts"
    return "start" if isinstance(error, OutputError | TrainerMissingError) else "source"


class _WordError(SettingsError):
    """A name or another text of the page is wrong."""


def _source(values: Mapping[str, Any]) -> list[str]:
    if not values.get("source"):
        raise CheckpointError("Choose a run or a LoRA to share.")
    job = _job(values["source"])
    source = job.path if job else sources.lora_path(values["source"], jobs.made_loras())
    checkpoint = str(values.get("checkpoint") or "")
    if job is None and not checkpoint:
        raise CheckpointError("Choose the checkpoint that this LoRA was made of.")
    found = [str(source)]
    if checkpoint:
        found.append(str(_checkpoint(values)))
    return found


def _name(values: Mapping[str, Any]) -> str:
    name = str(values.get("name") or "").strip()
    if not name or len(name) > 80:
        raise _WordError("Give it a name of up to 80 characters; the files are named by it.")
    return name


def _words(values: Mapping[str, Any]) -> list[str]:
    found = [f"--name={_name(values)}"]
    options = {
        "author": "author",
        "license": "license",
        "base_model": "base-model",
        "trigger_words": "trigger-words",
    }
    for name, option in options.items():
        text = str(values.get(name) or "").strip()
        if len(text) > MAX_WORDS or any(ord(letter) < 32 for letter in text):
            label = name.replace("_", " ").capitalize()
            raise _WordError(f"{label} has up to {MAX_WORDS} characters, on one line.")
        if text:
            found.append(f"--{option}={text}")
    count = values.get("count") or USUAL
    if not isinstance(count, (int, float)) or not FEWEST <= count <= MOST:
        raise _WordError(f"{count} images; from {FEWEST} to {MOST} are made.")
    return [*found, f"--count={int(count)}"]


def _prompts(values: Mapping[str, Any], output: Path) -> list[str]:
    text = str(values.get("prompts") or "")
    if not text.strip():
        if _job(values.get("source")) is None:
            raise PromptError("Write prompts for the preview images, one a line.")
        return []
    found = parse_prompts(text, "The prompts field")
    path = output.with_name(f"{output.name}.prompts.txt")
    atomic_write.write_text(path, "\n".join(found.prompts) + "\n")
    return [f"--prompts={path}"]


def _new_package(name: str) -> Path:
    folder = home() / "packages"
    with atomic_write.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stem = safe_name(name)
    count, place = 1, folder / stem
    while place.exists() or place.with_name(f"{place.name}.zip").exists():
        count += 1
        place = folder / f"{stem}-{count}"
    return place


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
    folder, packed = result_path(job, "folder"), result_path(job, "zip")
    if folder is None:
        said = f"{STATES[job.state]}. {job.message}"
        return blank | {"package": html.empty(job.title, said)}
    return {
        "package": _package(job, folder),
        "zip": Change(value=str(packed) if packed else None, visible=packed is not None),
        "description": _description(folder),
    }


def _package(job: Job, folder: Path) -> str:
    cover = result_path(job, "cover")
    return html.render(
        "package.html",
        title=job.title,
        folder=str(folder),
        cover=html.encoded_image(cover) if cover else "",
        names=sorted(path.name for path in folder.iterdir() if path.is_file()),
    )


def _description(folder: Path) -> Change:
    path = folder / "description.html"
    if not path.is_file():
        return Change(value="", visible=False)
    return Change(
        value=html.frame("Description", address=None, path=path, plain=True),
        visible=True,
    )
