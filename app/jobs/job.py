"""A job as front ends see it: everything is read from its directory at that moment."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import DPDMDError
from ..runs import exit_note
from ..runs.lock import live_owner
from ..runs.process_identity import NotedProcess, live_process
from . import files, spawn
from .queue import place_number, waiting

State = Literal[
    "new",
    "queued",
    "starting",
    "running",
    "stopping",
    "stopped",
    "interrupted",
    "finished",
    "failed",
]
LIVE = ("starting", "running", "stopping")
KINDS = ("distill", "check", "compare", "package", "setup")
ENDED = ("finished", "stopped", "failed")
LOG_TAIL_BYTES, MESSAGE_BYTES = 64 << 10, 4 << 10
NOT_A_RUN = (
    "This folder holds no run: its settings are missing or damaged. Nothing can be done with it "
    "but to delete it."
)
CUT_SHORT = "The process ended before the job did. Start it again: {}."
GOES_ON = "a distillation goes on exactly where its last saved state is"
CHECK_GOES_ON = "it goes on after its last finished part"
BEGUN = "--- "
"""So begins the line of a log, with the date behind it, that marks where a process began."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is known of a job.

    Attributes:
        id: the name of its folder.
        kind: one of KINDS.
        title: for people; may be any text.
        state: where it is between being made and having ended.
        place: its place in the queue from 0; None if it does not wait there.
        step: finished updates of a distillation, or finished steps of a task; 0 when unknown.
        steps: how many there will be; 0 when unknown.
        seconds_per_step: 0 when unknown.
        seconds_left: None when unknown.
        message: what it said last, or what went wrong.
        result: what it made.
        created_at: seconds since the epoch.
        updated_at: seconds since the epoch.
    """

    id: str
    path: Path
    kind: str
    title: str
    state: State
    place: int | None = None
    step: int = 0
    steps: int = 0
    seconds_per_step: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def live(self) -> bool:
        """Whether a process works on it."""
        return self.state in LIVE


def all_jobs() -> list[Job]:
    """All jobs, newest first; a damaged one is there as failed and says so.

    Whoever looks also wakes the worker, if jobs wait and it was killed.
    """
    with contextlib.suppress(DPDMDError, OSError):  # a full disk is no reason not to look
        spawn.ensure_worker()
    order = {folder.name: place for place, folder in enumerate(waiting())}
    jobs = [read_job(folder, order.get(folder.name)) for folder in files.job_folders()]
    return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)


def made_loras() -> dict[str, str]:
    """LoRAs that runs made and that are still there: a label for each path, newest first."""
    made: dict[str, str] = {}
    for job in all_jobs():
        lora = job.result.get("lora") if job.kind == "distill" else None
        if isinstance(lora, str) and Path(lora).is_file():
            made.setdefault(lora, f"{job.title} ({Path(lora).name})")
    return made


def get_job(id: str) -> Job:
    """One job.

    Raises:
        RunError: there is none of that name, or the name cannot be one.
    """
    folder = files.job_folder(id)
    order = waiting()
    return read_job(folder, order.index(folder) if folder in order else None)


def log_tail(id: str, lines: int = 40) -> str:
    """The last lines of a job's log; empty if there is none yet."""
    folder = files.job_folder(id)
    return "\n".join(tail(folder / files.LOG)[-max(1, lines) :])


def tail(path: Path, most: int = LOG_TAIL_BYTES) -> list[str]:
    """The last lines of a text file that grows; of a line redrawn in place, the last drawing.

    Args:
        most: bytes to look at.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - most))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def read_job(folder: Path, place: int | None = None) -> Job:
    """The job in a folder; never raises for what the folder holds."""
    names = (files.SETTINGS, files.TASK, files.JOB, files.PROGRESS)
    settings, task, own, progress = (files.read_json(folder / name) for name in names)
    config = settings.get("config")
    planned = config.get("steps") if isinstance(config, dict) else None
    kind = str(task.get("kind", "")) if task else "distill"
    usable = kind in KINDS and (bool(task) or isinstance(config, dict))
    state = state_of(folder, kind, progress) if usable else "failed"
    steps = int(files.number(progress.get("steps")) or files.number(planned))
    ended = bool(task) and state == "finished"
    step = steps if ended else int(files.number(progress.get("step"))) or _saved_step(folder)
    left = progress.get("seconds_left") if state in LIVE else None
    noted = (files.number(facts.get("created_at")) for facts in (own, settings or task))
    changed = ("", files.LOG, exit_note.NAME, files.QUEUED, files.JOB, files.RESULT)
    return Job(
        id=folder.name,
        path=folder,
        kind=kind if kind in KINDS else "distill",
        title=_title(folder, own, settings),
        state=state,
        place=place if state == "queued" else None,
        step=step,
        steps=steps,
        seconds_per_step=files.number(progress.get("seconds_per_step")),
        seconds_left=files.number(left) if left is not None else None,
        message=_message(folder, kind, state, step, progress) if usable else NOT_A_RUN,
        result=_result(folder, kind, state),
        created_at=next(filter(None, noted), 0.0) or _changed_at(folder),
        updated_at=max(
            files.number(progress.get("updated_at")),
            *(_changed_at(folder / name) for name in changed),
        ),
    )


def state_of(folder: Path, kind: str, progress: Mapping[str, Any]) -> State:
    """The state, from the locks, requests and notes in the folder."""
    taken, trains = (live_owner(folder / name) for name in (files.TAKEN, files.LOCK))
    owners = list(filter(None, (taken, trains, live_process(folder / files.CHILD))))
    if owners:  # the worker, the child, or a terminal
        if (folder / files.STOP).exists():
            return "stopping"
        began = min(owner.since for owner in owners)
        status = progress.get("status") if is_of_now(progress, trains, began) else None
        if kind == "distill" and status in (None, "loading"):
            return "starting"
        return "stopping" if status == "stopped" else "running"
    if place_number(folder) is not None:
        return "queued"
    return ended_state(folder, kind, progress)


def is_of_now(progress: Mapping[str, Any], owner: NotedProcess | None, began: float) -> bool:
    """Whether a run's progress is that of the process which works on it now.

    The process's number tells; a clock that was set back meanwhile does not.

    Args:
        owner: of the run's lock.
        began: when the process began, in seconds since the epoch; asked where no number tells.
    """
    pid = progress.get("pid")
    if owner is not None and owner.pid > 0 and isinstance(pid, int):
        return pid == owner.pid
    return files.number(progress.get("updated_at")) >= began


def ended_state(folder: Path, kind: str, progress: Mapping[str, Any]) -> State:
    """The state of a job that no process works on, the queue left aside."""
    note = _exit_note(folder, progress)
    if note.get("stopped") is True:
        return "stopped"
    if note and kind != "distill" and note.get("code") == 0:
        return "finished"
    if note.get("code") in (1, 2):
        return "failed"
    status = progress.get("status")
    if kind == "distill" and status in ENDED:
        return status
    marks = (files.TAKEN, files.CHILD, files.LOCK)
    begun = bool(note or status) or any((folder / name).exists() for name in marks)
    return "interrupted" if begun else "new"


def _exit_note(folder: Path, progress: Mapping[str, Any]) -> dict[str, Any]:
    """How the last process ended, unless the run went on since then without the queue."""
    note = files.read_json(folder / exit_note.NAME)
    newer = files.number(note.get("at")) >= files.number(progress.get("updated_at"))
    return note if newer else {}


def _message(folder: Path, kind: str, state: str, step: int, progress: Mapping[str, Any]) -> str:
    note = _exit_note(folder, progress)
    error = str(note.get("message") or progress.get("error") or "")
    if state == "interrupted":
        return error or CUT_SHORT.format(CHECK_GOES_ON if kind == "check" else GOES_ON)
    if state == "failed" and error:
        return error
    if state in ("new", "queued"):
        return ""
    if state == "stopped" and kind != "distill":
        return "Stopped. What is finished is kept." if kind == "check" else "Stopped."
    if state == "stopped":
        return f"Stopped after {step} updates. It can go on from there." if step else "Stopped."
    lines = tail(folder / files.LOG, MESSAGE_BYTES)
    said = (line for line in reversed(lines) if line.strip() and not line.startswith(BEGUN))
    return next(said, "")


def _result(folder: Path, kind: str, state: str) -> dict[str, Any]:
    if kind == "distill" or state != "finished":
        return files.read_json(folder / files.RESULT)
    for line in reversed(tail(folder / files.OUTPUT)):
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
            if isinstance(content, dict):
                return content
    return {}


def _title(folder: Path, own: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    title = files.clean_title(own.get("title") or "")
    output = settings.get("output")
    made = Path(output).stem if isinstance(output, str) and not title else ""
    return title or files.clean_title(made) or folder.name


def _saved_step(folder: Path) -> int:
    """The update of the last saved state: a run that is loading says no more."""
    names = [path.name.removeprefix("step-") for path in (folder / "state").glob("step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
