"""What a running worker tells and hears: progress.json, Ctrl-C and its like, the stop file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ...app.runs.directory import RunDirectory
from ...core.errors import OutputError
from ..training.loop import Progress

# Time a run may spend telling the file system how it goes.
PROGRESS_INTERVAL_SECONDS = 1.0
log = logging.getLogger("dpdmd_studio.commands")


class Status:
    """progress.json: what front ends read while the run goes.

    A file that cannot be written is logged and costs no run: the state says what is true.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._last, self._status, self._facts = run, 0.0, "", {}

    def __enter__(self) -> Status:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            self.write(status, force=True, error=str(error))

    def write(
        self,
        status: str,
        *,
        progress: Progress | None = None,
        force: bool = False,
        error: str | None = None,
    ) -> None:
        """Note the status, at most once a second unless it is another or `force` is set.

        A stop ends a process that is still loading: so the first update is noted at once.
        """
        if progress is not None:
            self._facts = {
                "step": progress.step,
                "steps": progress.steps,
                "seconds_per_step": progress.seconds_per_step,
                "seconds_left": progress.seconds_left,
                "metrics": progress.metrics,
            }
        now = time.monotonic()
        if force or status != self._status or now - self._last >= PROGRESS_INTERVAL_SECONDS:
            self._last, self._status = now, status
            facts = {"status": status, "pid": os.getpid(), "updated_at": time.time()}
            facts |= {"error": error} if error else {}
            try:
                self._run.write_json("progress.json", facts | self._facts)
            except (OSError, OutputError) as problem:
                log.warning("%s", problem)


class Interrupt(contextlib.AbstractContextManager["Interrupt"]):
    """Ctrl-C once asks for a stop; twice raises KeyboardInterrupt.

    SIGTERM (a system that shuts down, a cluster whose time is up) and SIGHUP (a terminal that was
    closed) ask for a stop, too, and however often they come: who sends them kills the process
    himself when he will wait no longer.
    """

    def __init__(self) -> None:
        self.asked, self._told = False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        with contextlib.suppress(ValueError):  # not the main thread: only the stop file counts
            for number in _stop_signals():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True  # told by `stop_wanted`: writing in a signal handler may break a write

    def should_stop(self, run: RunDirectory) -> Callable[[], bool]:
        """Whether a signal asked for a stop or a stop file lies in the run, as a function."""
        return lambda: self.stop_wanted() or run.stop_requested

    def stop_wanted(self) -> bool:
        """Whether a signal asked for a stop; says so the first time it is asked after that."""
        if self.asked and not self._told:
            self._told = True
            log.info("Stopping after this update; press Ctrl-C again to stop at once")
        return self.asked


def _stop_signals() -> list[signal.Signals]:
    """Those that ask for a stop here; `nohup` has a process ignore SIGHUP, and that stays so."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found
