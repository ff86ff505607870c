"""The lock file of a run: which process owns it, and when another may take it over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import OutputError, RunError

# A lock whose owner cannot be asked (another machine) is stale when nobody touched it for so long.
STALE_LOCK_SECONDS = 1800


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Own what the lock file at `path` guards while the block runs.

    Raises:
        RunError: a live process owns it already.
        OutputError: the lock cannot be written.
    """
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    for _ in range(2):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            _take_over_stale_lock(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}.") from error
    else:
        raise RunError(f"{path.parent} was taken by another process just now.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(owner, stream)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over_stale_lock(path: Path) -> None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        pid, host = -1, ""
    age = time.time() - path.stat().st_mtime if path.exists() else STALE_LOCK_SECONDS
    local = host == socket.gethostname()
    alive = _process_lives(pid) if local else age < STALE_LOCK_SECONDS
    if pid == -1:
        alive = age < 5  # a lock being written at this moment
    if alive:
        raise RunError(
            f"{path.parent} is in use by process {pid} on {host or 'an unknown machine'}. Wait "
            f"for it, or ask it to stop. If no such run goes on any more, delete {path}."
        )
    path.unlink(missing_ok=True)


def _process_lives(pid: int) -> bool:
    """Whether a process of this machine runs; on Windows os.kill(pid, 0) would end it."""
    if os.name == "nt":
        import ctypes

        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        handle = kernel.OpenProcess(0x1000, False, pid)
        if handle:
            kernel.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
