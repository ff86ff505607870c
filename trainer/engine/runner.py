"""One distillation from start to finish: the worker's whole job for a run directory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ...core.errors import DPDMDError
from ...core.lora_file import check_output
from ..request import DistillRequest
from ..run_directory import RunDirectory
from .loop import Progress, train
from .preview import Previews
from .session import Session, open_session

KEPT_CHECKPOINTS = 5
# Time a run may spend telling the file system how it goes.
PROGRESS_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the LoRA it wrote, after how many updates, and whether all were done."""

    lora: Path
    step: int
    finished: bool
    session: Session


def run_distillation(
    run: RunDirectory,
    *,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Train until done or stopped, and write the LoRA; resumes where a saved state is found.

    A stop (Ctrl-C once, or a `stop` file in the run) ends after the update at hand, saves the state
    and writes what there is. A second Ctrl-C stops at once and leaves the last saved state.

    Raises:
        DPDMDError: whatever is wrong with the request, its files, or the training itself.
    """
    with run.lock(), _Interrupt(report) as interrupt:
        run.clear_requests()
        status = _Status(run)
        try:
            session = open_session(run, report)
            if session.trainer.resume(run):
                report(f"Resuming after update {session.trainer.step}")
            outcome = _train(run, session, status, interrupt, report, on_progress)
        except DPDMDError as error:
            status.write("failed", force=True, error=str(error))
            raise
        except KeyboardInterrupt:
            status.write("interrupted", force=True)
            raise
        return outcome


def _train(
    run: RunDirectory,
    session: Session,
    status: _Status,
    interrupt: _Interrupt,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    previews = Previews(run, session, report)
    previews.teacher()

    def after_update(progress: Progress) -> None:
        status.write("running", progress=progress)
        on_progress(progress)
        every = session.config.preview_every
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            previews.student(progress.step)

    def after_save(step: int) -> None:
        session.write_lora(run.checkpoints / f"step-{step:08d}.safetensors", overwrite=True)
        for old in sorted(run.checkpoints.glob("step-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    finished = train(
        session.trainer,
        run,
        report=after_update,
        should_stop=lambda: interrupt.asked or run.stop_requested,
        on_save=after_save,
    )
    output = Path(session.request.output)
    session.write_lora(output, overwrite=session.request.overwrite or _is_ours(run, output))
    run.write_json("result.json", {"lora": str(output), "step": session.trainer.step})
    run.clear_requests()
    session.load_student(session.trainer.student_weights())  # what was saved is what is shown
    status.write("finished" if finished else "stopped", force=True)
    return Outcome(output, session.trainer.step, finished, session)


def _is_ours(run: RunDirectory, output: Path) -> bool:
    """Whether this very run wrote `output` when it was stopped before."""
    if not (run.path / "result.json").exists():
        return False
    return run.read_json("result.json").get("lora") == str(output)


class _Status:
    """progress.json: what front ends read while the run goes."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._last, self._facts = run, 0.0, {}

    def write(
        self,
        status: str,
        *,
        progress: Progress | None = None,
        force: bool = False,
        error: str | None = None,
    ) -> None:
        if progress is not None:
            self._facts = {
                "step": progress.step,
                "steps": progress.steps,
                "seconds_per_step": progress.seconds_per_step,
                "seconds_left": progress.seconds_left,
                "metrics": progress.metrics,
            }
        now = time.monotonic()
        if force or now - self._last >= PROGRESS_INTERVAL_SECONDS:
            self._last = now
            facts = {"status": status, "pid": os.getpid(), "updated_at": time.time()}
            facts |= {"error": error} if error else {}
            self._run.write_json("progress.json", facts | self._facts)


class _Interrupt(contextlib.AbstractContextManager["_Interrupt"]):
    """Ctrl-C once asks for a stop; twice raises KeyboardInterrupt."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.asked, self._report, self._before = False, report, None

    def __enter__(self) -> _Interrupt:
        with contextlib.suppress(ValueError):  # not the main thread: only the stop file counts
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._report("Stopping after this update; press Ctrl-C again to stop at once")


def create_run(
    folder: Path, request: DistillRequest, prompts: list[str], *, overwrite: bool
) -> RunDirectory:
    """A run directory for a request, ready for `run_distillation`."""
    request = request.absolute()
    request.config.validate()
    check_output(Path(request.output), overwrite=overwrite)
    return RunDirectory.create(folder, request.to_dict(), prompts, overwrite=overwrite)
