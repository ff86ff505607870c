"""Locks: who owns something, for as long as the owner's process lives.

The lock is the operating system's, on the file `.NAME.held` beside the one named. It ends with the
process that holds it, however that ends; programs that the process starts do not inherit it. The
named file only says who owns it, for people and for other versions of this program.

Taking, asking and giving back happen under a second, brief lock, `.NAME.guard`: of two that come at
once one wins, and one who merely asks is not taken for an owner.

A drive that knows no such locks (some network drives) is used all the same: its locks lie in this
machine's folder for temporary files, and only processes of one machine exclude each other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import OutputError, RunError
from ...core.files import atomic_write
from .process_identity import NotedProcess, live_process, noted_process
from .tables import read_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_VERSION = 2  # version 1, which has no such entry, was a lock by the owner's number alone
GUARD_SECONDS, PAUSE_SECONDS = 20.0, 0.01
UNSUPPORTED = {
    number
    for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL")
    if (number := getattr(errno, name, None)) is not None
}

UNKNOWN_OWNER = NotedProcess(-1, "", 0.0)

_drives: dict[int, bool] = {}  # whether a drive knows locks, as far as it was needed


@contextlib.contextmanager
def owned(
    path: Path, *, about: str = "", refusal: Callable[[NotedProcess], str] | None = None
) -> Iterator[None]:
    """Own what the lock file at `path` guards while the block runs; in the thread that began it.

    Args:
        about: what the owner does, for those who meet the lock.
        refusal: the message for those who meet it; by default that the folder is in use.

    Raises:
        RunError: a live process owns it already.
        OutputError: the lock cannot be written.
    """
    with guard(path):
        lock, other = _take_or_owner(path)
        if lock is None:
            raise RunError(refusal(other) if refusal else _in_use(path, other))
        facts = {"version": LOCK_VERSION, "pid": os.getpid(), "host": socket.gethostname()}
        facts |= {"since": time.time(), "about": about}
        try:
            atomic_write.write_text(path, json.dumps(facts))
        except BaseException:
            lock.release()
            raise
    try:
        yield
    finally:
        _let_go(path, lock)


def live_owner(path: Path) -> NotedProcess | None:
    """Who holds the lock at `path`; None where it is free, or its owner has ended."""
    if not path.exists():
        return None
    try:
        with guard(path):
            lock, owner = _take_or_owner(path)
            if lock is None:
                return owner
            lock.release()
            return None
    except (OutputError, RunError):  # it cannot be asked: what it says is believed
        return (noted_process(path) or UNKNOWN_OWNER) if path.exists() else None


def _take_or_owner(path: Path) -> tuple[BaseFileLock | None, NotedProcess]:
    """The lock itself, or None and who has it; to be called under the guard."""
    with atomic_write.explained(path):
        lock = _locked(path, "held", 0.0)
    if lock is None:
        return None, noted_process(path) or UNKNOWN_OWNER
    older = None if "version" in read_json(path) else live_process(path)
    if older is not None:
        lock.release()
        return None, older
    return lock, UNKNOWN_OWNER


def _in_use(path: Path, owner: NotedProcess) -> str:
    who = f"process {owner.pid} on {owner.host}" if owner.pid > 0 else "another program"
    return (
        f"{path.parent} is in use by {who}. Wait for it, or ask it to stop: it is free again as "
        "soon as that process ends."
    )


def _let_go(path: Path, lock: BaseFileLock) -> None:
    """Remove the file and free the lock."""
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        with contextlib.suppress(OutputError, RunError):
            stack.enter_context(guard(path))
        with contextlib.suppress(OutputError):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file if it is there; on Windows a reader may hold it for a moment.

    Raises:
        OutputError: it cannot be removed.
    """
    with atomic_write.explained(path):
        for attempt in range(atomic_write.REPLACE_ATTEMPTS):
            try:
                return path.unlink(missing_ok=True)
            except PermissionError:
                if attempt == atomic_write.REPLACE_ATTEMPTS - 1:
                    raise
                time.sleep(atomic_write.REPLACE_PAUSE_SECONDS)


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
    """Be alone, among all that name `path`, for a short block.

    What counts is the operating system's lock on the file `.NAME.guard` beside it, which no process
    can leave behind; the file itself may stay.

    Raises:
        RunError: another process did not leave its block in time.
        OutputError: the folder is missing or cannot be written.
    """
    file = _beside(path, "guard")
    with atomic_write.explained(file):
        lock = _locked(path, "guard", GUARD_SECONDS)
    if lock is None:
        raise RunError(
            f"Another program has held {file} for {GUARD_SECONDS:.0f} s. Try again; if it "
            "hangs, end it."
        )
    try:
        yield
    finally:
        lock.release()


# Files that the operating system locks


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _locked(path: Path, kind: str, seconds: float) -> BaseFileLock | None:
    """A lock that belongs to `path`, taken; None if others hold it for so many seconds.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    drive = path.parent.stat().st_dev
    # a lock that others seem to hold does not tell: some versions of the library say so of every
    # lock on a drive without locks
    if drive not in _drives:
        _drives[drive] = _knows_locks(path.parent)
    return _try(_beside(path, kind) if _drives[drive] else _elsewhere(path, kind), seconds)


def _try(file: Path, seconds: float) -> BaseFileLock | None:
    """The lock on a file; None if others hold it for so long, or the drive knows no locks."""
    # every host and the worker have it (torch imports it); a bare Python may do without a lock
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(str(file))
    try:
        lock.acquire(timeout=seconds, poll_interval=PAUSE_SECONDS)
    except (Timeout, NotImplementedError):
        return None
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    if isinstance(lock, SoftFileLock):  # a file that outlives a killed process: of no use here
        lock.release()
        return None
    return lock


def _knows_locks(folder: Path) -> bool:
    """Whether a file that nobody else can have locked can be locked."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".lock-", suffix=".try")
    os.close(handle)
    try:
        lock = _try(Path(name), 0.0)
        if lock is not None:
            lock.release()
        return lock is not None
    finally:
        Path(name).unlink(missing_ok=True)


def _elsewhere(path: Path, kind: str) -> Path:
    """A file of this user on this machine that stands for `path`."""
    user = os.getuid() if os.name != "nt" else ""
    folder = Path(tempfile.gettempdir()) / f"dpdmd-locks-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.name != "nt" and folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, f"{folder} belongs to another user")
    name = os.path.normcase(path.parent.resolve() / path.name)
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.{kind}"
