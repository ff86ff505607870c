"""One job from its start to its end: starts its process, watches it, notes how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from ...core.errors import OutputError
from ..environment import ROOT
from ..runs import exit_note
from ..runs.process_identity import note_process
from . import files
from .job import tail
from .spawn import detached, end_process, variables, worker_command

POLL_SECONDS = 0.2
LOOKED_AT_BYTES = 8 << 10
ERROR = re.compile(r"^(?:\S+(?: \S+)?: )?error: ")
STEP = re.compile(r"^\[(\d{1,3})/(\d{1,3})\]")
SIGNALLED = (
    "The process was ended from outside ({}). Start it again; it goes on from its last state."
)


def run_job(folder: Path) -> None:
    """Run the job in `folder`, which this process has taken, to its end, however it ends."""
    exit_note.reserve(folder)
    try:
        process = _launch(folder)
    except (OSError, ValueError, TypeError) as error:  # task.json may hold anything
        exit_note.note(folder, 1, f"The job's process cannot be started: {error}.")
        return
    stopped = _watch(folder, process)
    code = process.returncode
    if stopped:
        exit_note.note(folder, code, "Stopped.", stopped=True)
    elif not (folder / exit_note.NAME).exists():
        exit_note.note(folder, code, _reason(folder, code))
    for name in (files.CHILD, files.STOP, exit_note.RESERVE):
        with contextlib.suppress(OutputError):
            files.remove(folder / name)


def _launch(folder: Path) -> subprocess.Popen[bytes]:
    task = files.read_json(folder / files.TASK)
    environment = variables() | {exit_note.VARIABLE: str(folder)}
    place = Path(str(task.get("folder") or "."))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_opened(folder / files.LOG, "ab"))
        printed = log
        if task and task.get("kind") != "setup":
            printed = stack.enter_context(_opened(folder / files.OUTPUT, "wb"))
        with contextlib.suppress(OSError):
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
        cwd = place if task and place.is_dir() else folder.parent
        process = detached(_command(folder, task), printed, log, environment, cwd)
    with contextlib.suppress(OutputError):
        note_process(folder / files.CHILD, process.pid)
    return process


def _opened(path: Path, mode: str) -> IO[bytes]:
    """A file for the job's words, or nowhere if there is no room for it."""
    try:
        return path.open(mode)
    except OSError:
        return Path(os.devnull).open(mode)


def _command(folder: Path, task: dict[str, Any]) -> list[str]:
    if not task:
        return worker_command("resume", str(folder))
    words = [str(word) for word in task.get("arguments") or []]
    if task.get("kind") == "setup":
        python = str(task.get("python") or sys.executable)
        # the word is needed: without it, below a host, install.py only says how to go on
        return [python, "-u", str(ROOT / "install.py"), "setup", *words]
    return worker_command(*words, *([] if "--json" in words else ["--json"]))


def _watch(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the process; True if it was ended because somebody asked for it."""
    seen = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return False
        seen = _note_steps(folder, seen)
        if (folder / files.STOP).exists() and _may_be_ended(folder):
            end_process(process.pid)
            process.wait()
            return True


def _may_be_ended(folder: Path) -> bool:
    """Whether nothing is lost: a task, or a distillation that has not begun to train."""
    if (folder / files.TASK).exists():
        return True
    progress = files.read_json(folder / files.PROGRESS)
    child = files.read_json(folder / files.CHILD)
    fresh = files.number(progress.get("updated_at")) >= files.number(child.get("since"))
    return not (fresh and progress.get("status") not in ("loading", None))


def _note_steps(folder: Path, seen: int) -> int:
    """Turn a task's "[2/4] ..." lines into progress; returns the last step noted."""
    if not (folder / files.TASK).exists():
        return seen
    found = [
        match for line in tail(folder / files.LOG, LOOKED_AT_BYTES) if (match := STEP.match(line))
    ]
    if not found or int(found[-1][1]) == seen:
        return seen
    step, steps = int(found[-1][1]), int(found[-1][2])
    facts = {"status": "running", "step": step, "steps": steps, "updated_at": time.time()}
    with contextlib.suppress(OutputError):
        files.write_json(folder / files.PROGRESS, facts)
    return step


def _reason(folder: Path, code: int) -> str:
    """Why a process that left no note ended, as far as its code and its log tell."""
    if code == 0:
        return ""
    last = next(
        (line for line in reversed(tail(folder / files.LOG, LOOKED_AT_BYTES)) if line.strip()), ""
    )
    if code in (1, 2) and last:
        return ERROR.sub("", last)
    cause = f"signal {-code}" if code < 0 else f"exit code {code:#x}"
    return SIGNALLED.format(cause)
