"""The trainer's own state: what the pages say while it is missing, and the button that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....core.errors import RunError
from ... import jobs
from ...api.handler import set_up as submit_set_up
from ...environment import readiness
from ...jobs import Job
from ...library import surroundings
from ..widgets.html import copyable, error_note, heading, note
from .changes import Change, Values, noted_at

MISSING = (
    "Training needs libraries of its own: about 1 GB more where this program's PyTorch can be "
    "used, else 3 to 6 GB. They go into a folder of this extension, never into this program."
)
OUTDATED = "An update needs newer libraries than those that were set up. Set the trainer up again."
NOT_READY = (
    'The trainer is not set up yet. Press "Set up the trainer" on the Distil page first; it is '
    "done once."
)


class TrainerMissingError(RunError):
    """Nothing can run yet."""


def look() -> Values:
    """The box about the trainer: there only while something is to be done."""
    ready, outdated = readiness.is_ready(), readiness.is_outdated()
    if ready and not outdated:
        return {"trainer_box": Change(visible=False), "trainer": ""}
    job = next((job for job in jobs.all_jobs() if job.kind == "setup"), None)
    text = heading("The trainer", OUTDATED if ready else MISSING)
    text += _said(job)
    return {"trainer_box": Change(visible=True), "trainer": text}


def _said(job: Job | None) -> str:
    """How the last set-up stands."""
    if job is None:
        return ""
    if job.state == "queued" or job.live:
        return note("It is being set up now; the Runs page shows how far it is.")
    if job.state == "failed":
        failed = error_note(f"The last set-up failed: {job.message}")
        return failed + copyable("Or by hand", readiness.setup_command())
    return ""


@noted_at("trainer")
def set_up(values: Mapping[str, Any]) -> Values:
    """Queue the set-up, or show the one that goes on."""
    job = submit_set_up()
    return {"trainer_note": "", "selected": job.id, "tabs": Change(selected="runs")}


def before_start() -> None:
    """To be called before a run is queued: nothing can run without a trainer.

    Raises:
        TrainerMissingError: it is not set up.
    """
    if not readiness.is_ready():
        raise TrainerMissingError(NOT_READY)
    surroundings.current.before_start()
