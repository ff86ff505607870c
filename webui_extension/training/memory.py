"""The graphics card's memory goes to a training run and comes back, whatever becomes of the run.

A thread looks at the runs: they may begin in another window, end without a word, or go on from
before the host was started. A generation meanwhile gets the model back at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ...app import jobs
from ...app.jobs import LIVE, Job
from ...app.jobs.queue import waiting
from ..host import models, page, scripts
from .settings import FREE_MEMORY

PAUSE, BUSY_PAUSE = 3.0, 1.0
RESERVE_SECONDS = 20.0
"""How long memory is kept free for a run that is about to be queued."""
WAIT_SECONDS = 10.0
log = logging.getLogger("dpdmd_studio.memory")


class Keeper:
    """Unloads the host's model for runs and loads it again.

    Args:
        after: called with all jobs each time one of them may have changed its state.
    """

    def __init__(self, after: Callable[[list[Job]], None] = lambda every: None) -> None:
        self._after = after
        self._unloaded = False
        self._reserved_until = 0.0
        self._wake, self._free = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: dict[str, str] | None = None
        self._complained = ""

    def start(self) -> None:
        """Begin to look; once is enough."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="dpdmd-memory", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                busy = self.look()
                self._complained = ""
            except Exception as error:  # the thread must outlive a full disk or a host's mistake
                busy = True
                if str(error) != self._complained:
                    self._complained = str(error)
                    log.warning("The model could not be moved: %s", error)
            self._wake.wait(BUSY_PAUSE if busy else PAUSE)
            self._wake.clear()

    def look(self) -> bool:
        """Look at the runs once and act; whether one waits or runs."""
        every = jobs.all_jobs() if self._seen is None or self._may_have_changed() else None
        busy = every is not None and any(_needs_memory(job) for job in every)
        if every is not None:
            states = {job.id: job.state for job in every}
            if states != self._seen:
                self._after(every)
                self._seen = states
        reserved = time.monotonic() < self._reserved_until
        self._adjust(bool(page.option(FREE_MEMORY, True)) and (busy or reserved))
        return busy

    def _may_have_changed(self) -> bool:
        """Whether a worker or a run in the queue is there, or was when it was last looked."""
        seen = self._seen or {}
        going = any(state in LIVE or state == "queued" for state in seen.values())
        return going or jobs.worker_lives() or bool(waiting())

    def _adjust(self, wanted: bool) -> None:
        if wanted and not self._unloaded and models.has_model():
            with models.generating():
                self._unloaded = True  # before, so that it comes back if this fails half-way
                models.unload_model()
        elif self._unloaded and not wanted:
            with models.generating():
                if self._unloaded:  # a generation may have been first
                    models.reload_model()
                    self._unloaded = False
        if wanted:
            self._free.set()

    def before_start(self) -> None:
        """Free the memory for a run that is about to be queued; waits a moment until it is."""
        self._free.clear()
        self._reserved_until = time.monotonic() + RESERVE_SECONDS
        if self._thread is not None and page.option(FREE_MEMORY, True):
            self._wake.set()
            self._free.wait(WAIT_SECONDS)

    def before_generation(self) -> None:
        """Bring the model back for a generation, which holds the host's lock."""
        if self._unloaded:
            models.reload_model()
            self._unloaded = False


def _needs_memory(job: Job) -> bool:
    return job.kind != "setup" and (job.state == "queued" or job.live)


def _after(every: list[Job]) -> None:
    from .finished import add_cards

    add_cards(every)


keeper = Keeper(_after)


def register() -> None:
    """Look after the memory from the host's start on, and before each generation."""
    scripts.add_script(make_script())
    page.on("app_started", lambda *_: keeper.start())


def make_script() -> type:
    """The host's kind of script; it has no controls."""
    base: Any = scripts.script_base()

    class DPDMDMemoryScript(base):
        """Gives a generation its model back while a training run has the memory."""

        def title(self) -> str:
            """The name by which the API calls it."""
            return "DP-DMD memory"

        def before_process(self, p: scripts.Processing, *values: Any) -> None:
            """Called by the host before a generation."""
            keeper.before_generation()

    return DPDMDMemoryScript
