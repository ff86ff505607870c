"""The parts of one run's view as HTML, each with a key that changes when the part does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ....core.errors import DPDMDError
from ....core.files.tensor_file import read_header
from ....core.recipe.recipe import Recipe, read_recipe, usage_hint
from ...findings.checkup import read_lines
from ...findings.diagnosis import diagnose
from ...jobs import Job, log_tail
from ...library import surroundings
from ...library.choices import is_demo
from ...runs.checks import FEW_STEPS_SHEET, TEACHER_SHEET, sheets
from ...runs.directory import EVALUATIONS, METRICS, RunDirectory
from ...runs.previews import TEACHER, student_previews
from . import html
from .page_words import in_page_words

STATES = {
    "new": "Not started",
    "queued": "Waiting",
    "starting": "Starting",
    "running": "Running",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "interrupted": "Interrupted",
    "finished": "Finished",
    "failed": "Failed",
}
KINDS = {
    "distill": "Distillation",
    "check": "Check",
    "compare": "Comparison",
    "package": "Package",
    "setup": "Set-up",
}
UNITS = {"distill": "updates", "check": "parts"}
"""What a job goes through, where these are not steps."""
MADE = {"check": "Check"}
"""What the folder is called that a job made."""
SHEETS = {
    TEACHER_SHEET: ("Images of the teacher", "Teacher, guided, all its steps"),
    FEW_STEPS_SHEET: ("The same seeds in a few plain steps", "A few steps without guidance"),
}
"""Description and caption of the sheets of a check."""
DEMO_LORA = (
    "The web UI cannot load a demo checkpoint, and this LoRA fits no other: see what it draws on "
    "the page Compare. A LoRA of your own checkpoint is called from a prompt."
)
READY = "The trainer is ready, and this is not needed again: go on with the page Distil."
LIVE = ("queued", "starting", "running", "stopping")
MORE_CURVES = (
    "teacher_distance",
    "diversity_loss",
    "matching_gradient",
    "score_cosine",
    "fake_loss",
    "student_grad_norm",
    "fake_grad_norm",
    "seconds",
)
FIRST_CURVES, MOST_FIRST = ("diversity_kept", "perceptual_distance", *MORE_CURVES[:3]), 2
"""What a run is about; until it is measured, losses stand in."""
LOG_LINES = 60
PROGRESS_LINE = re.compile(r"update \d+/\d+,|---")  # the bar says it already


Piece = tuple[str, Callable[[], str]]
"""(key, how it is rendered) of a part of a page: it is sent again when its key is another one."""
Address = Callable[[Job], str]
"""Where a browser finds a job's report."""


def piece_of(text: str) -> Piece:
    """A part that is its own key."""
    return text, lambda: text


def pieces(job: Job, address: Address | None = None) -> dict[str, Piece]:
    """The parts of a job's view by name.

    Args:
        address: without it the report goes into the page.
    """
    measured = _marks(job, METRICS, EVALUATIONS)
    return {
        "status": piece_of(status(job)),
        "findings": (_marks(job, METRICS, EVALUATIONS, job.state), lambda: findings(job)),
        "check": (_marks(job, "output.txt", job.state), lambda: check(job)),
        "images": (_images_key(job), lambda: images(job)),
        "curves": (measured, lambda: curves(job, first=True)),
        "more": (measured, lambda: curves(job, first=False)),
        "files": (_marks(job, "result.json", job.state), lambda: files(job)),
        "log": (_marks(job, "log.txt"), lambda: log(job)),
        "report": (_marks(job, str(report_of(job))), lambda: report(job, address)),
    }


def _marks(job: Job, *names: str) -> str:
    """Size and time of change of files in the job's folder; other words stand for themselves."""
    found = [job.id]
    for name in names:
        try:
            facts = (job.path / name).stat()
            found.append(f"{facts.st_size}@{facts.st_mtime_ns}")
        except OSError:
            found.append(name)
    return "/".join(found)


def status(job: Job) -> str:
    """Title, state, how far it is and what it said last."""
    shown = html.render(
        "status.html",
        job=job,
        state=STATES[job.state],
        kind=KINDS.get(job.kind, job.kind),
        how_far=how_far(job),
    )
    return shown + _said(job)


def _said(job: Job) -> str:
    """What a person should know of the state: the error, or what goes on at the moment."""
    if job.state in ("failed", "interrupted"):
        return html.error_note(_worded(job))
    if job.state == "stopped" and job.kind == "distill":
        return html.note("What there was is kept. Resume goes on exactly where it stopped.")
    if job.state == "stopped" and job.kind == "check":
        return html.note("What is finished is kept. Resume goes on with the next part.")
    if job.state in ("starting", "running") and not PROGRESS_LINE.match(job.message):
        return html.note(_worded(job))
    return ""


def _worded(job: Job) -> str:
    """What a job said last; those that the page Distil begins in its words."""
    return in_page_words(job.message) if job.kind in ("distill", "check") else job.message


def how_far(job: Job) -> str:
    """Such as "54 of 200 updates · 2.9 s each · 7 min left"."""
    unit = UNITS.get(job.kind, "steps")
    words = [f"{job.step:,} of {job.steps:,} {unit}"]
    if job.state in LIVE:
        if job.seconds_per_step:
            words.append(f"{html.duration(job.seconds_per_step)} each")
        left = html.duration(job.seconds_left)
        if left and job.step < job.steps:
            words.append(f"{left} left")
    return " · ".join(words)


def findings(job: Job) -> str:
    """What the diagnosis says of a distillation, and its diversity beside the teacher's."""
    if job.kind != "distill":
        return ""
    run = RunDirectory(job.path)
    last = next((line for line in reversed(run.metrics(EVALUATIONS)) if isinstance(line, dict)), {})
    kept, step = last.get("diversity_kept"), last.get("step")
    meter = ""
    if isinstance(kept, (int, float)) and isinstance(step, int):
        meter = html.diversity_meter(kept, step)
    found = [replace(one, text=in_page_words(one.text)) for one in diagnose(run)]
    return meter + html.findings(found)


def check(job: Job) -> str:
    """What a check found, as a table with its verdicts, and the same to be pasted."""
    lines = read_lines(job.result) if job.kind == "check" else []
    if not lines:
        return ""
    lines = [replace(line, advice=in_page_words(line.advice)) for line in lines]
    text = job.result.get("table")
    return html.render("check.html", lines=lines, text=text if isinstance(text, str) else "")


def _images_key(job: Job) -> str:
    teacher = (job.path / "previews" / TEACHER).exists()
    return f"{job.id}/{teacher}/{len(student_previews(job.path))}/{job.result.get('folder')}"


def images(job: Job) -> str:
    """The teacher's and the newest student's sheet side by side, an early one before them."""
    if job.kind == "check":
        return _shown(
            [(sheet.path, *SHEETS[sheet.name]) for sheet in sheets(job.result.get("folder"))]
        )
    text = "Images of the teacher for fixed prompts and seeds"
    found = [(job.path / "previews" / TEACHER, text, "Teacher, all its steps")]
    students = student_previews(job.path)
    for sheet in [students[-1], students[0]] if len(students) > 1 else students:
        text = f"The student's images after update {sheet.step}, same prompts and seeds"
        found.append((sheet.path, text, f"Student after update {sheet.step:,}"))
    return _shown(found)


def _shown(found: Iterable[tuple[Path, str, str]]) -> str:
    """Images with a description and a caption each; "" if none can be read."""
    read = [(html.encoded_image(path), *words) for path, *words in found]
    shown = [sheet for sheet in read if sheet[0]]
    return html.render("images.html", sheets=shown) if shown else ""


def curves(job: Job, *, first: bool) -> str:
    """The metrics that a run is about as charts, or all others."""
    if job.kind != "distill":
        return ""
    from ...report import charts  # numpy only; the same charts as in the report

    run = RunDirectory(job.path)
    lines = [*run.metrics(METRICS), *run.metrics(EVALUATIONS)]
    lines = [line for line in lines if isinstance(line, dict)]
    known = {curve.key: curve for curve in charts.known_curves(lines)}
    drawable = [key for key in known if len(charts.series(lines, key)[0]) > 1]
    about = [key for key in FIRST_CURVES if key in drawable][:MOST_FIRST]
    keys = about if first else [key for key in MORE_CURVES if key in drawable and key not in about]
    drawn = [charts.chart(lines, known[key]) for key in keys]
    return html.render("curves.html", charts=drawn) if drawn else ""


def files(job: Job) -> str:
    """Where the LoRA and the run are, and how to sample with the LoRA."""
    rows, usage = [], ""
    if job.kind == "setup" and job.state == "finished":
        rows.append(html.piece("paragraph", READY, "dp-soft"))
    lora = job.result.get("lora")
    if isinstance(lora, str):
        recipe = _recipe(Path(lora))
        usage = html.heading("Sample with it", usage_hint(recipe), level=3) if recipe else ""
        tag = surroundings.current.prompt_tag(Path(lora))
        if tag and recipe is not None and is_demo(recipe.teacher_name):
            rows.append(html.piece("paragraph", DEMO_LORA, "dp-soft"))
        elif tag:
            rows.append(html.prompt_tag(tag))
        rows.append(html.copyable("LoRA", lora))
    made = result_path(job, "folder")
    if made:
        rows.append(html.copyable(MADE.get(job.kind, "Package"), str(made)))
    rows.append(html.copyable("Run folder" if job.kind == "distill" else "Files", str(job.path)))
    return usage + "".join(rows)


def _recipe(lora: Path) -> Recipe | None:
    with contextlib.suppress(DPDMDError, OSError):
        return read_recipe(read_header(lora).metadata)
    return None


def result_path(job: Job, name: str) -> Path | None:
    """A path that the job's result names, if it is there."""
    value = job.result.get(name)
    path = Path(value) if isinstance(value, str) and value else None
    try:
        return path if path is not None and path.exists() else None
    except (OSError, ValueError):
        return None


def report_of(job: Job) -> Path | None:
    """The report that the job made, if it did."""
    named = result_path(job, "report")
    own = job.path / "report" / "report.html"
    found = named if named is not None and named.suffix == ".html" else own
    return found if found.is_file() else None


def report(job: Job, address: Address | None) -> str:
    """The report in a frame, "" while there is none."""
    path = report_of(job)
    if path is None:
        return ""
    place = address(job) if address else None
    return html.frame(f"Report of {job.title}", address=place, path=path)


def log(job: Job) -> str:
    """The end of the job's log."""
    text = log_tail(job.id, LOG_LINES)
    return html.piece("log", text) if text else ""
