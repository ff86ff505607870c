"""Processes that outlive whoever started them: the worker, and the jobs that it runs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ...core.files import atomic_write
from ..environment import ROOT, WORKER
from ..library.home import home
from ..runs.lock import live_owner
from ..runs.process_identity import identity_of
from .files import jobs_guard
from .queue import waiting

WORKER_LOCK, WORKER_LOG = "worker.lock", "worker.log"
MAX_WORKER_LOG_BYTES = 1 << 20
STARTING_SECONDS = 20.0
GRACE_SECONDS = 5.0
# Windows: a console of its own that nobody sees, not that of the front end, and not its job object
NO_WINDOW, NEW_GROUP, BREAKAWAY = 0x08000000, 0x00000200, 0x01000000

_started: list[tuple[subprocess.Popen[bytes], float]] = []


def ensure_worker() -> bool:
    """Start the worker process if jobs are queued and none lives; True if it was started now.

    Called whenever somebody looks at the jobs: a worker that was killed comes back.
    """
    if not waiting() or worker_lives():  # mostly, and it costs little
        return False
    with jobs_guard():
        if not waiting() or worker_lives() or _is_starting():
            return False
        log = home() / WORKER_LOG
        if log.exists() and log.stat().st_size > MAX_WORKER_LOG_BYTES:
            log.unlink(missing_ok=True)
        with atomic_write.explained(log), log.open("ab") as stream:
            process = detached(
                worker_command("work"), stream, stream, variables(), home().absolute()
            )
        _started.append((process, time.monotonic()))
        return True


def worker_lives() -> bool:
    """Whether a worker process is there."""
    lives = live_owner(home() / WORKER_LOCK) is not None
    if lives:  # those started here are past their start: the next time they may be about to end
        _started[:] = [(process, -math.inf) for process, _ in _started]
    return lives


def _is_starting() -> bool:
    """Whether a worker that this process started has not got as far as its lock."""
    now = time.monotonic()
    _started[:] = [item for item in _started if item[0].poll() is None]  # collects ended ones, too
    return any(now - began < STARTING_SECONDS for _, began in _started)


def worker_command(*arguments: str) -> list[str]:
    """The command line that runs ours in the worker's environment, or here if there is none."""
    if WORKER.is_ready:
        return WORKER.command(str(ROOT), *arguments)
    return [sys.executable, str(ROOT), *arguments]


def variables() -> dict[str, str]:
    """The environment variables for it, free of what hosts put there."""
    place = {"DPDMD_HOME": str(home().absolute())}  # it runs in another folder
    # what crashes in a library's own code leaves a trace in the log
    return WORKER.variables() | place | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def detached(
    command: Sequence[str],
    output: IO[bytes] | int,
    errors: IO[bytes] | int,
    environment: Mapping[str, str],
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that goes on when this one, its terminal or its window ends."""

    def begun(flags: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=dict(environment),
            cwd=folder,
            start_new_session=os.name != "nt",
            creationflags=flags,
        )

    if os.name != "nt":
        return begun(0)
    try:
        return begun(NO_WINDOW | NEW_GROUP | BREAKAWAY)
    except OSError:  # a host may forbid its processes to leave its job object
        return begun(NO_WINDOW | NEW_GROUP)


def end_process(pid: int, *, asks: bool = True) -> None:
    """End a process made by `detached` with all that it started, or do nothing if it has ended.

    Args:
        asks: whether it is asked first. A distillation takes that for a wish to stop after the
            update at hand, which takes long while it is still loading.
    """
    if os.name == "nt":
        command = ["taskkill", "/T", "/F", "/PID", str(pid)]
        subprocess.run(command, capture_output=True, creationflags=NO_WINDOW)
        return
    for number in (signal.SIGTERM, signal.SIGKILL) if asks else (signal.SIGKILL,):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if identity_of(pid) is None:
                return
            time.sleep(0.05)
