"""What front ends do with jobs; two at once agree, as each decides under a guard.

A new job is made in a hidden folder, and is there for everybody all at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ...core.errors import OutputError, PromptError, RunError, SettingsError
from ...core.files import atomic_write
from ..config.new_run import check_inputs, check_request
from ..config.request import DistillRequest
from ..disk import check_room
from ..library.home import numbered
from ..prompts.reading import prompts_text
from ..runs import exit_note
from ..runs.checks import CHECKED_PROMPTS
from ..runs.directory import EVALUATION_PROMPTS, GIVEN_PROMPTS, PROMPTS, UNPREPARED, RunDirectory
from ..runs.lock import live_owner
from ..runs.process_identity import live_process
from ..runs.settings_file import config_text
from . import files, spawn
from .job import KINDS, LIVE, Job, get_job
from .queue import dequeue, enqueue
from .spawn import end_process

SETTINGS_FILE = "checked-settings.json"
STARTABLE = ("new", "stopped", "interrupted", "failed")


def start(id: str) -> Job:
    """Put a job into the queue and wake the worker; a distillation goes on where it was.

    A job that waits already stays where it is.

    Raises:
        RunError: there is no such job, it runs already, or is finished.
        OutputError: the queue cannot be written.
    """
    folder = files.job_folder(id)
    with files.jobs_guard():
        job = get_job(id)
        if job.state in LIVE:
            raise RunError(f"{job.title} is {job.state} already.")
        if job.state == "finished":
            raise RunError(f"{job.title} is finished. Duplicate it to run it once more.")
        if job.state in STARTABLE:
            _check_startable(folder)
            enqueue(folder, first=job.kind == "setup")
    spawn.ensure_worker()
    return get_job(id)


def _check_startable(folder: Path) -> None:
    """Raise RunError for a folder that no worker could run."""
    if not (folder / files.TASK).is_file():
        DistillRequest.from_dict(RunDirectory.open(folder).settings())
        return
    task = files.read_json(folder / files.TASK)
    if task.get("kind") not in KINDS or not isinstance(task.get("arguments"), list):
        raise RunError(f"{folder / files.TASK} is damaged, or of another version. Delete this job.")


def stop(id: str) -> Job:
    """Take a job out of the queue, or end it: a distillation keeps what there is.

    Raises:
        RunError: there is no such job, or it neither waits nor runs.
        OutputError: the request cannot be written.
    """
    folder = files.job_folder(id)
    with files.jobs_guard():
        job = get_job(id)
        if job.state == "queued":
            dequeue(folder)
            return get_job(id)
        if job.state not in LIVE:
            raise RunError(f"{job.title} is {job.state}; there is nothing to stop.")
        atomic_write.write_text(folder / files.STOP, "")
    alone = live_owner(folder / files.TAKEN) is None
    if job.kind != "distill" and alone and (child := live_process(folder / files.CHILD)):
        end_process(child.pid)  # its worker was killed and cannot do it
        exit_note.note(folder, 1, "Stopped.", stopped=True)
    return get_job(id)


def duplicate(id: str, title: str = "") -> Job:
    """A new distillation with the same settings and prompts, not started.

    Raises:
        RunError: there is no such job, it is no distillation, or it is damaged.
        OutputError: the new one cannot be written.
    """
    job = get_job(id)
    if job.kind != "distill":
        raise RunError(f"{job.title} is a {job.kind}; only distillations can be duplicated.")
    run = RunDirectory.open(job.path)
    values = DistillRequest.from_dict(run.settings()).to_dict()
    values |= {"output": str(free_output(Path(values["output"]))), "created_at": time.time()}
    values |= {"overwrite": False}
    with files.draft_folder() as draft:
        RunDirectory.create(
            draft, values, run.prompts(), evaluation_prompts=run.evaluation_prompts()
        )
        atomic_write.write_text(draft / UNPREPARED, "")
        if (run.path / GIVEN_PROMPTS).exists():
            given = "\n".join(run.given_prompts()) + "\n"
            atomic_write.write_text(draft / GIVEN_PROMPTS, given)
            atomic_write.write_text(draft / PROMPTS, given)
            (draft / EVALUATION_PROMPTS).unlink(missing_ok=True)
        name = Path(values["output"]).stem
        return publish(draft, name, files.clean_title(title) or name, place=None)


def free_output(asked: Path) -> Path:
    """`asked`, or a name beside it, that neither exists nor is the aim of another job."""
    names = (asked.with_name(stem + asked.suffix) for stem in numbered(asked.stem))
    return next(
        path for path in names if not path.exists() and not any(files.folders_that_write(str(path)))
    )


def rename(id: str, title: str) -> Job:
    """Give a job another title; its folder and files keep their names.

    Raises:
        SettingsError: nothing readable is left of the title.
        RunError: there is no such job.
    """
    folder, plain = files.job_folder(id), files.clean_title(title)
    if not plain:
        raise SettingsError("The title is empty. Give a word or two.")
    created = get_job(id).created_at
    files.write_json(folder / files.JOB, {"version": 1, "title": plain, "created_at": created})
    return get_job(id)


def delete(id: str) -> Path:
    """Move a job into the trash; returns where it is now. A LoRA that it wrote stays in place.

    Raises:
        RunError: there is no such job, or it runs.
        OutputError: its files cannot be moved.
    """
    folder = files.job_folder(id)
    with files.jobs_guard():
        job = get_job(id)
        if job.state in LIVE:
            raise RunError(f"{job.title} is {job.state}. Stop it before it is deleted.")
        return _move(folder, files.trash())


def restore(id: str) -> Job:
    """Take a job back out of the trash; one that was queued waits again.

    Raises:
        RunError: there is no such job in the trash.
        OutputError: its files cannot be moved.
    """
    folder = files.job_folder(id, inside=files.trash())
    with files.jobs_guard():
        job = get_job(_move(folder, files.runs()).name)
    spawn.ensure_worker()
    return job


def _move(folder: Path, into: Path) -> Path:
    with atomic_write.explained(into):
        into.mkdir(parents=True, exist_ok=True)
    target = next(into / name for name in numbered(folder.name) if not (into / name).exists())
    try:
        atomic_write.replace(folder, target)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be moved to {into}: {error}. Close what has its files open."
        ) from error
    return target


# New jobs


def submit_distill(
    request: DistillRequest,
    prompts: Sequence[str],
    title: str,
    *,
    queue: bool = True,
    alone: bool = False,
) -> Job:
    """A new distillation, queued and begun as soon as the device is free, or only made.

    What needs the trainer is checked when it begins; a mistake found then makes the job fail within
    seconds, with the reason as its message.

    Args:
        title: for people; empty takes the name of the LoRA.
        alone: whether to refuse what a job that waits or runs will write already.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        SettingsError: a setting is not possible with this model.
        PromptError: there are no prompts.
        OutputError: the LoRA or the run cannot be written where they shall go.
    """
    if not prompts:
        raise PromptError("There are no prompts. Give at least one; a few hundred are a good start")
    if not request.created_at:
        request = dataclasses.replace(request, created_at=time.time())
    request = check_request(files.runs() / "new", request, overwrite=request.overwrite)
    check_room(files.runs() / "new", request)
    with files.draft_folder() as draft:
        RunDirectory.create(draft, request.to_dict(), list(prompts))
        atomic_write.write_text(draft / GIVEN_PROMPTS, "\n".join(prompts) + "\n")
        atomic_write.write_text(draft / UNPREPARED, "")
        name = Path(request.output).stem
        shown, output = files.clean_title(title) or name, request.output if alone else ""
        return publish(draft, name, shown, place="last" if queue else None, output=output)


def submit_task(kind: str, arguments: Sequence[str], title: str) -> Job:
    """A new task, queued and begun as soon as the device is free.

    A set-up goes to the front of the queue: without it nothing else can run.

    Args:
        kind: "check", "compare" or "package", a command of the command line; or "setup".
        arguments: the command's arguments, its name in front or not; those of install.py for a
            set-up. Relative paths count from the folder that this process is in now.
        title: for people; empty takes the kind.

    Raises:
        SettingsError: there is no such kind of task, or the arguments are not texts.
        OutputError: the job cannot be written.
    """
    if kind not in KINDS or kind == "distill":
        raise SettingsError(
            f"{kind!r} is no kind of task; expected check, compare, package or setup."
        )
    words = list(arguments)
    if not all(isinstance(word, str) and "\x00" not in word for word in words):
        raise SettingsError("The arguments of a task must be texts without NUL characters.")
    if words[:1] == [kind]:
        del words[0]
    task = _task(kind, words if kind == "setup" else [kind, *words]) | {"folder": os.getcwd()}
    with files.draft_folder() as draft:
        files.write_json(draft / files.TASK, task)
        place = "first" if kind == "setup" else "last"
        return publish(draft, kind, files.clean_title(title) or kind, place=place)


def _task(kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    return {
        "version": files.TASK_VERSION,
        "kind": kind,
        "arguments": list(arguments),
        "python": sys.executable,
        "created_at": time.time(),
    }


def submit_check(request: DistillRequest, prompts: Sequence[str], title: str = "") -> Job:
    """A check of the checkpoint with what this run would have; its output is not looked at.

    Where one of the same words waits or runs, it is that; one that has not finished goes on.

    Args:
        prompts: the first ones are drawn; none: two of our own.
        title: for people; empty takes the name of the checkpoint.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        LoraError: a teacher LoRA is no LoRA that can be read, or of another family.
        SettingsError: a setting is not possible with this model.
        OutputError: the job cannot be written.
    """
    request, _ = check_inputs(request)
    model, config = asdict(request.model), request.config
    words = ["check", model.pop("checkpoint"), f"--settings={SETTINGS_FILE}"]
    words += [f"--{name.replace('_', '-')}={file}" for name, file in model.items() if file]
    words += [f"--teacher-lora={lora.path}:{lora.strength:g}" for lora in request.teacher_loras]
    words.append(f"--device={config.device}")  # which no settings file names
    texts = {SETTINGS_FILE: config_text(config)}
    if prompts:
        texts[PROMPTS] = prompts_text(prompts[:CHECKED_PROMPTS])
        words.append(f"--prompts={PROMPTS}")
    for job in _checks_of(words, texts):
        if job.state != "finished":
            return job if job.state == "queued" or job.state in LIVE else start(job.id)
    with files.draft_folder() as draft:
        files.write_json(draft / files.TASK, _task("check", words))  # it runs in its own folder
        for name, text in texts.items():
            atomic_write.write_text(draft / name, text)
        shown = files.clean_title(title or f"Check of {Path(request.model.checkpoint).stem}")
        return publish(draft, "check", shown, place="last")


def check_run(id: str) -> Job:
    """A check of a distillation's checkpoint, with all that this run has.

    Raises:
        RunError: there is no such job, it is no distillation, or it is damaged.
        DPDMDError: as for `submit_check`.
    """
    job = get_job(id)
    if job.kind != "distill":
        raise RunError(f"{job.title} is a {job.kind}; only a distillation's checkpoint is checked.")
    run = RunDirectory.open(job.path)
    given = run.given_prompts() if (run.path / GIVEN_PROMPTS).exists() else run.prompts()
    return submit_check(DistillRequest.from_dict(run.settings()), given)


def _checks_of(words: list[str], texts: Mapping[str, str]) -> Iterator[Job]:
    """The jobs that check the same, what is in their files included."""
    for folder in files.job_folders():
        if files.read_json(folder / files.TASK).get("arguments") != words:
            continue
        with contextlib.suppress(OSError, ValueError):
            if all((folder / n).read_text(encoding="utf-8") == text for n, text in texts.items()):
                yield get_job(folder.name)


def publish(
    draft: Path, name: str, title: str, *, place: Literal["first", "last"] | None, output: str = ""
) -> Job:
    """The job made of a draft, in the queue if asked for, and the worker awake.

    Args:
        place: in the queue; None leaves the job out of it.
        output: a file that no other job may write; empty asks nothing.

    Raises:
        OutputError: another job that waits or runs writes to `output`.
    """
    note = {"version": 1, "title": title, "created_at": time.time()}
    atomic_write.write_text(draft / files.JOB, json.dumps(note))
    with files.jobs_guard():
        if output:
            _check_alone(output)
        if place is not None:
            enqueue(draft, first=place == "first")
        folder = files.publish(draft, name)
    if place is not None:
        spawn.ensure_worker()
    return get_job(folder.name)


def _check_alone(output: str) -> None:
    """Raise OutputError if a job that waits or runs will write the same file."""
    for folder in files.folders_that_write(output):
        job = get_job(folder.name)
        if job.state == "queued" or job.state in LIVE:
            raise OutputError(
                f"{job.title} ({job.state}) writes {Path(output).name} already. Choose another "
                "name for the LoRA, or stop that run first."
            )
