"""Lock files: which process owns something, and when another may take it over.

A lock file names its owner by number, machine and start time, so that a number used again is not
taken for the owner. It is made, taken over and removed under a guard, a lock of the operating
system that ends with the process: of two that find a stale lock, one wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core.errors import OutputError, RunError
from ...core.files import atomic_write
from .process_identity import UNKNOWN, identity_of, lives

# A lock whose owner cannot be asked (another machine) is stale when nobody touched it for so long.
STALE_LOCK_SECONDS = 1800
HEARTBEAT_SECONDS = 30
GUARD_SECONDS, GUARD_PAUSE_SECONDS = 20.0, 0.01
DAMAGED_LOCK_SECONDS = 5


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        identity: when the process began, see `process_identity`; "" if not known.
        since: when the lock was taken, in seconds since the epoch.
        about: what the owner does with it, for people.
    """

    pid: int
    host: str
    identity: str
    since: float
    about: str = ""


def this_process(about: str = "") -> Owner:
    """The running process as an owner."""
    pid = os.getpid()
    return Owner(pid, socket.gethostname(), identity_of(pid) or UNKNOWN, time.time(), about)


@contextlib.contextmanager
def owned(
    path: Path, *, about: str = "", refusal: Callable[[Owner], str] | None = None
) -> Iterator[None]:
    """Own what the lock file at `path` guards while the block runs.

    Args:
        about: what the owner does, for those who meet the lock.
        refusal: the message for those who meet it; by default that the folder is in use.

    Raises:
        RunError: a live process owns it already.
        OutputError: the lock cannot be written.
    """
    owner = this_process(about)
    with guard(path):
        other = live_owner(path)
        if other is not None:
            raise RunError(refusal(other) if refusal else _in_use(path, other))
        atomic_write.write_text(path, json.dumps(asdict(owner)))
    ended = threading.Event()
    threading.Thread(target=_keep_fresh, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _let_go(path, owner)


def live_owner(path: Path) -> Owner | None:
    """Who holds the lock at `path`; None where it is free, or its owner has ended."""
    owner, age = read_owner(path), _age(path)
    if age is None:
        return None
    if owner is None:  # being written at this moment by another version, or damaged
        return Owner(-1, "", UNKNOWN, 0.0) if age < DAMAGED_LOCK_SECONDS else None
    if owner.host != socket.gethostname():
        return owner if age < STALE_LOCK_SECONDS else None
    return owner if lives(owner.pid, owner.identity) else None


def read_owner(path: Path) -> Owner | None:
    """What a lock file says, whether or not it is stale; None if it is missing or damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Owner(
            int(facts["pid"]),
            str(facts["host"]),
            str(facts.get("identity", UNKNOWN)),
            float(facts["since"]),
            str(facts.get("about", "")),
        )
    except (OSError, ValueError, OverflowError, RecursionError):
        return None
    except (KeyError, TypeError, AttributeError):  # not what we write
        return None


def _age(path: Path) -> float | None:
    """Seconds since somebody touched the file; None if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def _in_use(path: Path, owner: Owner) -> str:
    return (
        f"{path.parent} is in use by process {owner.pid} on {owner.host or 'an unknown machine'}. "
        f"Wait for it, or ask it to stop. If no such run goes on any more, delete {path}."
    )


def _keep_fresh(path: Path, ended: threading.Event) -> None:
    """Show other machines that the owner lives."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _let_go(path: Path, owner: Owner) -> None:
    """Remove the lock if it is still the owner's; a reader may hold it for a moment."""
    with contextlib.suppress(OutputError, RunError), guard(path):
        if read_owner(path) != owner:
            return
        for _ in range(atomic_write.REPLACE_ATTEMPTS):
            try:
                return path.unlink(missing_ok=True)
            except PermissionError:
                time.sleep(atomic_write.REPLACE_PAUSE_SECONDS)
            except OSError:
                return


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
    """Be alone, among all of this machine that name `path`, for a short block.

    The file `.NAME.guard` beside it stays; what counts is the operating system's lock on it, which
    no process can leave behind. Drives that know no such locks are used without.

    Raises:
        RunError: another process did not leave its block in time.
        OutputError: the folder is missing or cannot be written.
    """
    file = path.with_name(f".{path.name}.guard")
    with atomic_write.explained(file):
        handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        _wait_for(handle, file)
        yield
    finally:
        os.close(handle)  # which frees it


def _wait_for(handle: int, file: Path) -> None:
    deadline = time.monotonic() + GUARD_SECONDS
    while not _lock_file(handle):
        if time.monotonic() > deadline:
            raise RunError(
                f"Another program has held {file} for {GUARD_SECONDS:.0f} s. Try again; if it "
                "hangs, end it."
            )
        time.sleep(GUARD_PAUSE_SECONDS)


def _lock_file(handle: int) -> bool:
    """Lock an open file unless another has it; True as well where the drive cannot lock."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 0, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
