"""What the program logs as it works, shown as plain lines on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from ..app.environment.launched import place

LOGGER = logging.getLogger("dpdmd_studio")
CPU_KERNEL = "bitsandbytes.backends.cpu.ops"
"""Asks on import for a kernel that no run here uses, and for a package to download it with."""
FOR_HOSTS = "dpdmd_studio.attention"
"""Which kernel the nodes sample with; a run states its own."""


def show_warnings() -> None:
    """Show everybody's warnings as plain lines, unless this process shows its log already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)  # what is below is shown by `shown_by`
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger(CPU_KERNEL).setLevel(logging.ERROR)


@contextlib.contextmanager
def shown_by(write: Callable[[str], None]) -> Iterator[None]:
    """Hand what the program's INFO records say to `write`, in place of whoever had them before."""
    handler = _Lines(write)
    before = [other for other in LOGGER.handlers if isinstance(other, _Lines)]
    level = LOGGER.level
    for other in before:
        LOGGER.removeHandler(other)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(handler)
        for other in before:
            LOGGER.addHandler(other)


def plain_line(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class _Lines(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._write = write
        self.addFilter(_is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's text; what goes wrong in writing is the run's affair."""
        self._write(record.getMessage())


def _is_shown(record: logging.LogRecord) -> bool:
    """What all processes of a run would say alike is said by the first."""
    usual = record.levelno < logging.WARNING and record.name != FOR_HOSTS
    return usual and place().is_main
