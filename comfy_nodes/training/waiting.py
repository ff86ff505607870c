"""Waits for a run on a node: progress, previews, the host's Cancel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ...app import jobs
from ...app.gui.widgets.html import duration
from ...app.jobs import Job, files
from ...app.runs.checks import FEW_STEPS_SHEET, sheets
from ...app.runs.previews import TEACHER, Preview, previews, student_previews
from ...core.errors import DPDMDError, RunError
from ..host import running

LOOK_SECONDS = 0.25
WAKE_SECONDS = 5.0
STOP_SECONDS = 120.0
"""An update of a large model may take long; after so long the run ends without the node."""
CANCELLED = "Cancelled: the run ends after this update and keeps what there is."
CANCELLED_CHECK = "Cancelled: what is finished is kept."
PREVIEW_SIDE = 1024
LINE = 16
ENDED = ("finished", "stopped", "failed", "interrupted", "new")


def wait(job: Job, node_id: str | None) -> Job:
    """The job as it is when it has ended; on Cancel it is stopped first, and keeps what it has.

    Raises:
        RunError: it was deleted meanwhile.
        BaseException: the host's own, on Cancel.
    """
    shown = _Shown(job, node_id)
    try:
        return _watch(job, shown)
    except BaseException as error:
        if running.is_interrupt(error):
            _stop(job.id, shown)
        raise


def _watch(job: Job, shown: _Shown) -> Job:
    woken = time.monotonic()
    while True:
        running.check_interrupt()
        if time.monotonic() - woken > WAKE_SECONDS:
            woken = time.monotonic()
            with contextlib.suppress(DPDMDError, OSError):
                jobs.ensure_worker()  # it may have been killed while this run waited
        before, job = job, jobs.get_job(job.id)
        shown.show(job)
        if job.state in ENDED and before.state == job.state:
            return job  # seen twice: between queue and process a job has no owner for a moment
        time.sleep(LOOK_SECONDS)


def _stop(id: str, shown: _Shown) -> None:
    """Stop a run and wait until it has kept what it has, or until Cancel is pressed once more."""
    began, waited = time.time(), time.monotonic()
    with contextlib.suppress(DPDMDError):  # it has ended, or is gone
        jobs.stop(id)
    with contextlib.suppress(DPDMDError):
        while time.monotonic() - waited < STOP_SECONDS:
            job = jobs.get_job(id)
            if job.state in ENDED or _has_kept(job, began):
                return
            shown.say(CANCELLED_CHECK if job.kind == "check" else CANCELLED)
            running.check_interrupt()
            time.sleep(LOOK_SECONDS / 2)


def _has_kept(job: Job, since: float) -> bool:
    """Whether all is written that a stopped run keeps; its process takes seconds more to end."""
    progress = files.read_json(job.path / files.PROGRESS)
    return progress.get("status") == "stopped" and files.number(progress.get("updated_at")) >= since


def until_ended(job: Job) -> Job:
    """The job when its process, which is stopping, has ended."""
    while job.state == "stopping":
        running.check_interrupt()
        time.sleep(LOOK_SECONDS)
        job = jobs.get_job(job.id)
    return job


class _Shown:
    """What a node shows of a run; only changes are sent."""

    def __init__(self, job: Job, node_id: str | None) -> None:
        self._bar, self._node_id = running.progress_bar(max(1, job.steps), node_id), node_id
        self._said, self._seen = "", ()
        self._step = -1

    def say(self, text: str) -> None:
        """Write a line on the node."""
        if text and text != self._said:
            self._said = text
            running.notify(self._node_id, text)

    def show(self, job: Job) -> None:
        """Progress, text, and an image where there is a new one."""
        self.say(words(job))
        found = tuple(preview.name for preview in previews(job.path))
        image = latest_image(job.path) if found != self._seen else None
        if image is not None:
            self._seen = found
        if image is not None or job.step != self._step:
            self._step = job.step
            running.show_progress(self._bar, job.step, job.steps, image)


def words(job: Job) -> str:
    """How a run stands, in a line."""
    if job.state == "queued":
        if not job.place:
            return "Waits for the trainer, which is busy with another run or starting."
        return f"Waits: {job.place} other runs are before it in the queue."
    if job.state == "starting":
        return "Loads the checkpoint and encodes the prompts."
    if job.kind == "check":
        return job.message or "Loads the libraries."
    text = f"{job.state.capitalize()}: update {job.step} of {job.steps}"
    left = duration(job.seconds_left)
    return f"{text}, {left} left" if left and job.state == "running" else text


def latest_image(run: Path) -> Image.Image | None:
    """The newest student's sheet beside the teacher's; None if there is neither."""
    students = student_previews(run)
    teacher = [preview for preview in previews(run) if preview.is_teacher]
    return _joined([*teacher, *students[-1:]])


def check_image(job: Job) -> Image.Image | None:
    """The teacher's sheet of a check beside that of few plain steps; None if there is neither."""
    return _joined(sheets(job.result.get("folder")))


def _joined(shown: Sequence[Preview]) -> Image.Image | None:
    images = [sheet for sheet in map(_labelled, shown) if sheet is not None]
    if not images:
        return None
    width = sum(image.width for image in images) + LINE * (len(images) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + LINE
    joined.thumbnail((2 * PREVIEW_SIDE, PREVIEW_SIDE))
    return joined


def _labelled(preview: Preview) -> Image.Image | None:
    """A sheet with a line above it that says whose it is; None if it cannot be read yet."""
    try:
        with Image.open(preview.path) as file:
            sheet = file.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    image = Image.new("RGB", (sheet.width, sheet.height + LINE), "white")
    image.paste(sheet, (0, LINE))
    labels = {TEACHER: "Teacher", FEW_STEPS_SHEET: "A few steps without guidance"}
    label = labels.get(preview.name, f"Student, update {preview.step}")
    ImageDraw.Draw(image).text((4, 2), label, fill="black")
    return image


def check_ended(job: Job) -> None:
    """Raise RunError, with what to do, for a run that has ended without what was asked for."""
    if job.state in ("finished", "stopped"):
        return
    if job.state == "new":
        raise RunError(
            f"Run {job.id} was taken out of the queue. Queue this node again to put it back."
        )
    reason = job.message or "It ended without saying why."
    remedy = "Fix the cause and queue this node again"
    if job.state == "interrupted":
        reason = reason.partition(". ")[0].rstrip(".") + "."  # what it says next is for elsewhere
        remedy = "Queue this node again: it goes on where its last saved state is"
    raise RunError(
        f"{reason} {remedy}. Its log is in the DP-DMD panel and in {job.path}. ComfyUI itself is "
        "not affected."
    )
