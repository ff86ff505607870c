"""The worker process: takes queued jobs one after another and ends when none are left."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

from ...core.errors import DPDMDError, RunError
from ..library.home import home
from ..runs import exit_note
from ..runs.lock import live_owner, owned
from ..runs.process_identity import live_process
from . import files
from .job import ended_state
from .queue import dequeue, waiting
from .spawn import WORKER_LOCK
from .supervise import run_job

PAUSE_SECONDS = 0.5
FORGOTTEN_SECONDS = 3600
log = logging.getLogger("dpdmd_studio.jobs")


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
            files.remove(folder / name)
        dequeue(folder)
        return folder
    return None


def _sweep() -> None:
    """Remove jobs that somebody began to make long ago and never finished making."""
    for draft in files.runs().glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(draft)
