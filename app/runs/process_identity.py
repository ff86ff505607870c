"""Whether a process still runs, and whether it is the same one: numbers are used again.

A process that has to be found again, to be ended, is noted in a file by its number, its machine and
when it began. Standard library only; one way each for Linux, Windows and other systems.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ...core.files import atomic_write
from .tables import read_json

# A process that cannot be asked (of another machine) counts as ended when its note is so old.
STALE_NOTE_SECONDS = 1800
UNKNOWN = ""  # the process runs, but this system does not say when it began
ENDED = ("Z", "X")  # ended, and merely not yet collected by its parent


def identity_of(pid: int) -> str | None:
    """When the process began, in this system's own words; None if no such process runs.

    The text means nothing by itself: equal texts of equal numbers mean the same process.
    """
    if not 0 < pid < 2**32:
        return None
    if os.name == "nt":
        return _on_windows(pid)
    if Path("/proc/self/stat").exists():
        return _on_linux(pid)
    return _on_other_systems(pid)


def lives(pid: int, identity: str) -> bool:
    """Whether the process `pid` runs and is the one that had this identity."""
    now = identity_of(pid)
    return now is not None and (UNKNOWN in (now, identity) or now == identity)


@dataclass(frozen=True)
class NotedProcess:
    """A process that somebody noted, or that owns a lock.

    Attributes:
        pid: -1 if not known.
        host: the machine's name.
        since: when it was noted, in seconds since the epoch.
        identity: when it began, see `identity_of`; "" if not known.
        about: what it does, for people.
    """

    pid: int
    host: str
    since: float
    identity: str = UNKNOWN
    about: str = ""


def note_process(path: Path, pid: int) -> None:
    """Note a running process of this machine at `path`.

    Raises:
        OutputError: the note cannot be written.
    """
    facts = {"pid": pid, "host": socket.gethostname(), "identity": identity_of(pid) or UNKNOWN}
    atomic_write.write_text(path, json.dumps(facts | {"since": time.time()}))


def noted_process(path: Path) -> NotedProcess | None:
    """The process that a note names, whether or not it lives; None without a readable note."""
    facts = read_json(path)
    try:
        return NotedProcess(
            int(facts["pid"]),
            str(facts["host"]),
            float(facts["since"]),
            str(facts.get("identity", UNKNOWN)),
            str(facts.get("about", "")),
        )
    except (KeyError, TypeError, ValueError, OverflowError):  # not what we write
        return None


def live_process(path: Path) -> NotedProcess | None:
    """The process that a note names; None where there is no note, or the process has ended."""
    noted = noted_process(path)
    if noted is None:
        return None
    if noted.host == socket.gethostname():
        return noted if lives(noted.pid, noted.identity) else None
    try:
        return noted if time.time() - path.stat().st_mtime < STALE_NOTE_SECONDS else None
    except OSError:
        return None


def _on_linux(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *others = text.rpartition(")")[2].split()
        began = others[18]  # field 22 of the whole line: ticks since the system started
    except (OSError, ValueError, IndexError):
        return UNKNOWN if _answers(pid) else None
    if state in ENDED:
        return None
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:8]
    except OSError:
        start = "-"
    return f"{start}/{began}"


def _on_other_systems(pid: int) -> str | None:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    variables = os.environ | {"LC_ALL": "C"}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN if _answers(pid) else None
    state, _, began = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith(ENDED) else " ".join(began.split())


def _answers(pid: int) -> bool:
    """Whether some process has the number; never to be asked on Windows, where it would end it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _on_windows(pid: int) -> str | None:
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(0x1000, False, pid)  # may ask for limited facts
    if not handle:
        refused = ctypes.get_last_error() == 5  # type: ignore[attr-defined]
        return UNKNOWN if refused else None
    process = ctypes.c_void_p(handle)
    code, times = ctypes.c_ulong(), [ctypes.c_ulonglong() for _ in range(4)]
    try:
        # a handle opens to an ended process, too, while somebody else holds one
        if kernel.GetExitCodeProcess(process, ctypes.byref(code)) and code.value != 259:
            return None
        if not kernel.GetProcessTimes(process, *(ctypes.byref(time) for time in times)):
            return UNKNOWN
        return str(times[0].value)
    finally:
        kernel.CloseHandle(process)
