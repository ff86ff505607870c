"""The Runs page without its widgets: the list, one run's view, and what the buttons do."""

from __future__ import annotations

from collections.abc import Mapping

from ....core.errors import DPDMDError
from ... import jobs
from ...jobs import Job, files
from ..forms.changes import Change, Values
from ..forms.trainer import before_start
from . import html
from .run_pieces import LIVE, STATES, Address, piece_of, pieces, result_path

PIECES = (
    "list",
    "status",
    "findings",
    "check",
    "images",
    "curves",
    "more",
    "files",
    "log",
    "report",
)
FOLDED = ("more", "report", "log")
"""Pieces inside a box of their own, `<name>_box`, that is there only when they are."""
BUTTONS = ("start", "stop", "up", "down", "duplicate", "delete")
SHARE = "share"
"""A button beside them, which opens another page."""
Seen = dict[str, str]
"""Piece -> the key it had when it was last sent to this page."""
STARTABLE = ("new", "stopped", "interrupted", "failed")
START_LABELS = {"new": "Start", "failed": "Try again"}


def refresh(
    selected: object,
    seen: Mapping[str, str] | None,
    address: Address | None = None,
    *,
    keep_message: bool = False,
) -> Values:
    """What has changed since `seen`: pieces, buttons, selection. `seen` itself is the last value.

    Args:
        selected: the id of the job in view; the newest one if there is none of that id.
        address: where a browser finds a job's report; without it the report goes into the page.
        keep_message: whether the last message stays although the job or its state is another.
    """
    before, now = dict(seen or {}), {}
    every = jobs.all_jobs()
    job = next((one for one in every if one.id == selected), every[0] if every else None)
    parts = {"list": piece_of(job_list(every, job))} | (pieces(job, address) if job else {})
    changed: Values = {}
    for name in PIECES:
        key, render = parts.get(name, ("none", lambda: ""))
        now[name] = key
        if before.get(name) != key:
            text = render()
            changed[name] = Change(value=text, visible=bool(text))
            if name in FOLDED:
                changed[f"{name}_box"] = Change(visible=bool(text))
    changed |= _buttons(job, every, before, now)
    if not keep_message and before.get("buttons") not in (None, now["buttons"]):
        changed["message"] = ""
    return changed | {"selected": job.id if job else "", "seen": now}


def _buttons(job: Job | None, every: list[Job], before: Seen, now: Seen) -> Values:
    now["buttons"] = repr(
        (job.id, job.state, job.place, sum(one.state == "queued" for one in every)) if job else None
    )
    if before.get("buttons") == now["buttons"]:
        return {}
    state, place = (job.state, job.place) if job else ("", None)
    last = sum(one.state == "queued" for one in every) - 1
    allowed = {
        "start": state in STARTABLE,
        "stop": state in ("queued", "starting", "running"),
        "up": place is not None and place > 0,
        "down": place is not None and place < last,
        "duplicate": job is not None and job.kind == "distill",
        "delete": job is not None and state not in ("starting", "running", "stopping"),
        SHARE: job is not None and job.kind == "distill" and bool(result_path(job, "lora")),
    }
    changes: Values = {name: Change(visible=value) for name, value in allowed.items()}
    changes["start"]["value"] = START_LABELS.get(state, "Resume")
    changes["stop"]["value"] = "Take out of the queue" if state == "queued" else "Stop and keep"
    changes["rename_box"] = Change(visible=job is not None)
    changes["new_title"] = job.title if job else ""
    return changes


def job_list(every: list[Job], chosen: Job | None) -> str:
    """All jobs as buttons, what waits or runs first."""
    rank = {"running": 0, "stopping": 0, "starting": 0, "queued": 1}
    order = sorted(every, key=lambda job: (rank.get(job.state, 2), job.place or 0))
    return html.render(
        "job_list.html",
        jobs=[(job, _how_it_stands(job)) for job in order],
        chosen=chosen,
        live=any(job.state in LIVE for job in every),
    )


def _how_it_stands(job: Job) -> str:
    words = STATES[job.state]
    if job.state in ("running", "stopping", "stopped", "interrupted") and job.steps:
        words += f" · {job.step / job.steps:.0%}"
    goes_on = job.state == "running" and job.step < job.steps
    left = html.duration(job.seconds_left) if goes_on else ""
    words += f" · {left} left" if left else ""
    if job.place is not None:
        words += f" · place {job.place + 1}"
    return words


def act(action: str, selected: object, text: object = "") -> Values:
    """Do what a button says with the selected job: `message`, and `selected` where that changes.

    Args:
        action: start, stop, up, down, duplicate, rename, delete or restore.
        text: the new title for rename; the name in the trash for restore.
    """
    try:
        return _act(action, str(selected or ""), str(text or ""))
    except DPDMDError as error:
        return {"message": html.error_note(error)}


def _act(action: str, id: str, text: str) -> Values:
    if action == "restore":
        job = jobs.restore(text)
        return _said("It is back.") | {"selected": job.id}
    if action == "start":
        if jobs.get_job(id).kind != "setup":
            before_start()
        jobs.start(id)
        return _said("It is in the queue.")
    if action == "stop":
        job = jobs.stop(id)
        if job.live and job.kind != "distill":
            return _said("It stops.")
        if job.live:
            return _said("It stops after the update at hand and keeps what there is.")
        return _said("It is out of the queue.")
    if action in ("up", "down"):
        place = jobs.get_job(id).place
        if place is None:
            return _said("It does not wait in the queue any more.")
        jobs.move(id, max(0, place + (1 if action == "down" else -1)))
        return {"message": ""}
    if action == "duplicate":
        job = jobs.duplicate(id)
        return _said("The copy is not started yet.") | {"selected": job.id}
    if action == "rename":
        jobs.rename(id, text)
        return _said("Renamed.")
    jobs.delete(id)
    return _said("It is in the trash below, from where it can be taken back.") | {"selected": ""}


def _said(message: str) -> Values:
    return {"message": html.note(message, "done")}


def trash() -> list[str]:
    """Names of deleted jobs, newest first."""
    names = (path.name for path in files.trash().glob("*") if path.is_dir())
    return sorted((name for name in names if not name.startswith(".")), reverse=True)
