"""The worker process: takes queued jobs one after another and ends when none are left.

It starts a job's process, watches it and notes how it ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from ...core.errors import DPDMDError, OutputError, RunError
from ..environment import ROOT
from ..library.home import home
from ..runs import exit_note
from ..runs.lock import live_owner, owned, remove
from ..runs.process_identity import live_process, note_process
from . import files
from .job import BEGUN, ended_state, is_of_now, tail
from .queue import dequeue, waiting
from .spawn import WORKER_LOCK, detached, end_process, variables, worker_command

PAUSE_SECONDS = 0.5
FORGOTTEN_SECONDS = 3600
log = logging.getLogger("dpdmd_studio.jobs")
POLL_SECONDS = 0.2
LOOKED_AT_BYTES = 8 << 10
ERROR = re.compile(r"^(?:\S+(?: \S+)?: )?error: ")
STEP = re.compile(r"^\[(\d{1,3})/(\d{1,3})\]")
SIGNALLED = (
    "The process was ended from outside ({}). Start it again; it goes on from its last state."
)
KILLED = (
    "The process was ended from outside (signal 9: killed by hand, by a system that shut down, or "
    "by one that had no memory left). Start it again; it goes on from its last state. If that "
    "happens again, close other programs or enlarge the swap space."
)
CRASHED = (
    "The process crashed in a library's own code ({}); the log may say where. Start it again; it "
    "goes on from its last state. If that happens again, update the device's driver and set the "
    "trainer up anew (`python install.py setup`)."
)
CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")
"""Signals that a process gives itself. On Windows its exit code says such a thing."""
WINDOWS_CRASH = 0xC0000000


def work() -> int:
    """Run queued jobs until none are left; returns 0, at once if another worker lives."""
    with contextlib.ExitStack() as lock:
        try:
            files.runs().mkdir(parents=True, exist_ok=True)
            lock.enter_context(owned(home() / WORKER_LOCK, about="the queue"))
        except RunError:
            return 0
        _sweep()
        while _one_round(lock):
            pass
    return 0


def _one_round(lock: contextlib.ExitStack) -> bool:
    """Run the next job or wait a moment; False when the queue is empty and the lock given back."""
    with contextlib.ExitStack() as job:
        try:
            with files.jobs_guard():
                folder = _take(job)
                if folder is None and not waiting():
                    lock.close()  # before anybody can queue a job and find a worker that leaves
                    return False
            if folder is not None:
                run_job(folder)
                return True
        except (DPDMDError, OSError) as error:  # a full disk, perhaps: the next round tries again
            log.warning("%s", error)
    time.sleep(PAUSE_SECONDS)
    return True


def _take(job: contextlib.ExitStack) -> Path | None:
    """The next job, owned until `job` closes and no longer in the queue; None if there is none.

    While a job of a worker that was killed goes on, its device is not free: none is taken.
    """
    if any(live_process(folder / files.CHILD) for folder in files.job_folders()):
        return None
    for folder in waiting():
        if live_owner(folder / files.LOCK):  # a terminal goes on with this very run
            continue
        kind = "task" if (folder / files.TASK).exists() else "distill"
        if ended_state(folder, kind, files.read_json(folder / files.PROGRESS)) == "finished":
            dequeue(folder)  # by a terminal, while it waited here
            continue
        job.enter_context(owned(folder / files.TAKEN, about="the queue"))
        for name in (exit_note.NAME, files.CHILD, files.STOP):
            remove(folder / name)
        dequeue(folder)
        return folder
    return None


def _sweep() -> None:
    """Remove jobs that somebody began to make long ago and never finished making."""
    for draft in files.runs().glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(draft)


# One job, from its start to its end


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
            remove(folder / name)


def _launch(folder: Path) -> subprocess.Popen[bytes]:
    task = files.read_json(folder / files.TASK)
    environment = variables() | {exit_note.VARIABLE: str(folder)}
    place = Path(str(task.get("folder") or folder))  # a check brings its own files
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_opened(folder / files.LOG, "ab"))
        printed = log
        if task and task.get("kind") != "setup":
            printed = stack.enter_context(_opened(folder / files.OUTPUT, "wb"))
        with contextlib.suppress(OSError):
            log.write(f"{BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
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
            end_process(process.pid, asks=(folder / files.TASK).exists())
            process.wait()
            return True


def _may_be_ended(folder: Path) -> bool:
    """Whether nothing is lost: a task, or a distillation that has not begun to train."""
    if (folder / files.TASK).exists():
        return True
    progress = files.read_json(folder / files.PROGRESS)
    child = files.read_json(folder / files.CHILD)
    fresh = is_of_now(progress, live_owner(folder / files.LOCK), files.number(child.get("since")))
    return not (fresh and progress.get("status") not in ("loading", None))


def _note_steps(folder: Path, seen: int) -> int:
    """Turn a task's "[2/4] ..." lines, said as a step begins, into progress; the last one."""
    if not (folder / files.TASK).exists():
        return seen
    found: list[re.Match[str]] = []
    for line in tail(folder / files.LOG, LOOKED_AT_BYTES):
        if line.startswith(BEGUN):  # steps of an earlier start say nothing
            found.clear()
        elif match := STEP.match(line):
            found.append(match)
    if not found or int(found[-1][1]) == seen:
        return seen
    step, steps = int(found[-1][1]), int(found[-1][2])
    done = {"step": step - 1, "steps": steps}
    facts = {"status": "running", **done, "updated_at": time.time()}
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
    name = next((s.name for s in signal.Signals if s == -code), "")
    if name == "SIGKILL":
        return KILLED
    cause = f"signal {-code}" if code < 0 else f"exit code {code:#x}"
    crashed = name in CRASHES or code >= WINDOWS_CRASH
    return (CRASHED if crashed else SIGNALLED).format(cause)
