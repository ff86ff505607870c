"""How a job of the queue ended, noted by the job itself: whoever started it may be gone by then.

The worker tells a job's process by an environment variable which folder is the job's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar, cast

from ...core.errors import DPDMDError, OutputError
from ...core.files import atomic_write

VARIABLE = "DPDMD_JOB"
NAME, RESERVE = "exit.json", ".reserve"
RESERVE_BYTES = 64 << 10
MAX_MESSAGE_CHARACTERS = 4000
Arguments = TypeVar("Arguments")


def in_queue() -> bool:
    """Whether this process was started by the queue."""
    return bool(os.environ.get(VARIABLE))


def queued_run(folder: Path) -> bool:
    """Whether this process was started by the queue for the job in `folder`."""
    named = os.environ.get(VARIABLE)
    return bool(named) and Path(named or "").resolve() == Path(folder).resolve()


def recorded(command: Callable[[Arguments], int], arguments: Arguments) -> int:
    """Run a command; in a process of the queue, note its exit code and error in the job."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return command(arguments)
    # a log that cannot be written, on a full disk for instance, costs no run
    sys.stderr = cast("TextIO", Tolerant(sys.stderr))
    try:
        code = command(arguments)
    except DPDMDError as error:
        note(Path(folder), 2, str(error))
        raise
    except KeyboardInterrupt:
        note(Path(folder), 130, "Interrupted.")
        raise
    except BaseException as error:
        note(Path(folder), 1, f"{type(error).__name__}: {error}")
        raise
    note(Path(folder), code, "")
    return code


def reserve(folder: Path) -> None:
    """Keep some bytes of the disk free for the note, should the disk fill up."""
    with contextlib.suppress(OSError):
        (folder / RESERVE).write_bytes(bytes(RESERVE_BYTES))


def note(folder: Path, code: int, message: str, *, stopped: bool = False) -> None:
    """Write how the job ended; a disk without room for it costs the note alone.

    Args:
        code: the exit code; negative for a signal.
        message: what went wrong, for people; empty if nothing did.
        stopped: whether somebody asked for the end.
    """
    facts = {
        "code": code,
        "message": message[:MAX_MESSAGE_CHARACTERS],
        "stopped": stopped,
        "at": time.time(),
    }
    with contextlib.suppress(OSError):
        (folder / RESERVE).unlink(missing_ok=True)
    with contextlib.suppress(OutputError):
        atomic_write.write_text(folder / NAME, json.dumps(facts))


class Tolerant:
    """A stream whose writes may fail; `failure` is the first error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text, if that can be done; the number of its characters."""
        with self._failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits, if that can be done."""
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
