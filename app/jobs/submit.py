"""New jobs: made in a hidden folder, and there for everybody all at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ...core.errors import OutputError, PromptError, SettingsError
from ...core.files import atomic_write
from ..config.new_run import check_request
from ..config.request import DistillRequest
from ..runs.directory import GIVEN_PROMPTS, UNPREPARED, RunDirectory
from . import files, spawn
from .job import KINDS, LIVE, Job, get_job
from .queue import enqueue


def submit_distill(
    request: DistillRequest,
    prompts: Sequence[str],
    title: str,
    *,
    queue: bool = True,
    alone: bool = False,
) -> Job:
    """A new distillation, queued and begun as soon as the device is free, or only made.

    What needs the engine is checked when it begins; a mistake found then makes the job fail within
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
        kind: "compare" or "package", a command of the command line; or "setup".
        arguments: the command's arguments, its name in front or not; those of install.py for a
            set-up. Relative paths count from the folder that this process is in now.
        title: for people; empty takes the kind.

    Raises:
        SettingsError: there is no such kind of task, or the arguments are not texts.
        OutputError: the job cannot be written.
    """
    if kind not in KINDS or kind == "distill":
        raise SettingsError(f"{kind!r} is no kind of task; expected compare, package or setup.")
    words = list(arguments)
    if not all(isinstance(word, str) and "\x00" not in word for word in words):
        raise SettingsError("The arguments of a task must be texts without NUL characters.")
    if words[:1] == [kind]:
        del words[0]
    task = {
        "version": files.TASK_VERSION,
        "kind": kind,
        "arguments": words if kind == "setup" else [kind, *words],
        "folder": os.getcwd(),
        "python": sys.executable,
        "created_at": time.time(),
    }
    with files.draft_folder() as draft:
        files.write_json(draft / files.TASK, task)
        place = "first" if kind == "setup" else "last"
        return publish(draft, kind, files.clean_title(title) or kind, place=place)


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
