"""How a run ends: which student is written, where, and what its folder says of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ...app.config.request import DistillRequest
from ...app.runs.directory import RunDirectory
from ..evaluation.monitor import Monitor
from ..training.session import Session
from .run_status import Status

log = logging.getLogger("dpdmd_studio.commands")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        lora: the file it wrote.
        step: finished student updates.
        finished: whether all were done.
        kept_step: the update after which the written student was taken.
        report: report.html, where one was made.
    """

    lora: Path
    step: int
    finished: bool
    session: Session
    kept_step: int
    report: Path | None = None


def write_result(
    run: RunDirectory, session: Session, monitor: Monitor, status: Status, finished: bool
) -> Outcome:
    """Write the last student, or a better one if the run is done, and say so in result.json."""
    output = _output(run, session.request)
    step, weights = session.trainer.step, session.trainer.student_weights()
    best = monitor.best() if finished and session.config.keep == "best" else None
    if best is not None:
        log.info(
            "The student after update %d is clearly nearer to the teacher than the last "
            "one; it is written. The last one is kept in %s.",
            best.step,
            run.checkpoints,
        )
        step, weights = best.step, best.weights
    session.write_lora(output, overwrite=True, weights=weights, step=step)
    facts = {"lora": str(output), "step": session.trainer.step, "kept_step": step}
    run.write_json("result.json", facts)
    run.clear_requests()
    session.load_student(weights)  # what was saved is what is shown
    status.write("finished" if finished else "stopped", force=True)
    return Outcome(output, session.trainer.step, finished, session, step)


def _output(run: RunDirectory, request: DistillRequest) -> Path:
    """Where the LoRA goes: where it was asked for, or beside what has appeared there meanwhile."""
    written = None
    if (run.path / "result.json").exists():  # by this very run, when it was stopped before
        written = run.read_json("result.json").get("lora")
    asked, count = Path(request.output), 1
    output = asked
    while output.exists() and not request.overwrite and str(output) != written:
        count += 1
        output = asked.with_name(f"{asked.stem}-{count}{asked.suffix}")
    if output != asked:
        log.info("%s was made by someone else meanwhile; the LoRA goes to %s.", asked, output)
    return output
