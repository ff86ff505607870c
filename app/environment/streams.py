"""Standard streams that may be closed, missing or full: no run ends for what it could not say."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from ..runs.exit_note import Tolerant


def open_missing() -> None:
    """Give this process the streams that it was started without, as by pythonw or `>&-`.

    What is written there is lost. Their numbers are taken, too, so that no file gets one of them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def tolerant() -> Iterator[Tolerant]:
    """In the block a write to standard output, which is handed in, or error may fail.

    That is said at the end where it can be.

    A reader that has gone (`| head`) is no failure. What is left unwritten stays so: Python would
    try again when it ends, and complain.
    """
    before = sys.stdout, sys.stderr
    streams = [Tolerant(stream) for stream in before]
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", tuple(streams))
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
        for stream, real in zip(streams, before, strict=True):
            if stream.failure is not None:
                _let_go(real)
        if lost(streams[0]):
            streams[1].write(f"The result could not be shown: {streams[0].failure}.\n")


def lost(stream: Tolerant) -> bool:
    """Whether something could not be written that somebody would have read."""
    return stream.failure is not None and not isinstance(stream.failure, BrokenPipeError)


def _let_go(stream: TextIO) -> None:
    """Turn a stream that failed to where everything may be written."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, stream.fileno())
        os.close(number)
