"""All that a page shows of one run, as JSON-ready data; damaged files count as not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ...core.errors import DPDMDError
from ..findings.diagnosis import diagnose_facts
from ..jobs import Job, log_tail
from ..runs.checks import sheets
from ..runs.curves import CURVES
from ..runs.directory import RunDirectory
from ..runs.facts import Line, number, read_facts
from ..runs.previews import Preview, previews
from .exchange import PREFIX
from .outcome import has_report

DIVERSITY = ("diversity_kept", "perceptual_distance", "teacher_distance")
"""What is measured now and then; all other curves have a value for each update."""
MAX_POINTS = 500
LOG_LINES = 60


def job_facts(job: Job) -> dict[str, Any]:
    """A job as it goes over the wire; where its folder is stays here."""
    facts = dataclasses.asdict(job)
    del facts["path"]
    return facts


def run_detail(job: Job) -> dict[str, Any]:
    """A job with curves, previews, findings, settings and the end of its log."""
    facts = job_facts(job) | {"log": log_tail(job.id, LOG_LINES)}
    facts |= {"previews": [preview_facts(job.id, found) for found in previews_of(job)]}
    facts |= {"report": has_report(job)}
    if job.kind != "distill":
        return facts | {"loss": [], "diversity": [], "findings": [], "settings": {}}
    run = RunDirectory(job.path)
    read = read_facts(run)
    return facts | {
        "loss": series(read.metrics, [c.key for c in CURVES if c.key not in DIVERSITY]),
        "diversity": series(read.evaluations, DIVERSITY),
        "findings": [dataclasses.asdict(finding) for finding in diagnose_facts(read)],
        "settings": _settings(run) | read.config.to_dict(),
    }


def previews_of(job: Job) -> list[Preview]:
    """The preview images of a run, or the sheets of a finished check."""
    return sheets(job.result.get("folder")) if job.kind == "check" else previews(job.path)


def series(lines: Sequence[Line], names: Sequence[str]) -> list[dict[str, Any]]:
    """The curves that have values: {"name", "label", "points": [[update, value], ...]}."""
    labels = {curve.key: curve.title for curve in CURVES}
    found = []
    for name in names:
        pairs = [(int(line["step"]), number(line, name)) for line in lines]
        points = [[step, value] for step, value in pairs if value is not None]
        if points:
            found.append({"name": name, "label": labels[name], "points": thinned(points)})
    return found


def thinned(points: Sequence[Any], most: int = MAX_POINTS) -> list[Any]:
    """At most that many points, evenly chosen; the first and the last stay."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (most - 1))] for index in range(most)]


def preview_facts(id: str, preview: Preview) -> dict[str, Any]:
    """A preview's name, update and address."""
    url = f"{PREFIX}/runs/{quote(id, safe='')}/previews/{preview.name}"
    return {"name": preview.name, "step": preview.step, "url": url}


def _settings(run: RunDirectory) -> dict[str, Any]:
    """Which files a run reads and writes."""
    try:
        values = run.settings()
    except DPDMDError:
        return {}
    model, loras = values.get("model"), values.get("teacher_loras")
    facts = dict(model) if isinstance(model, dict) else {}
    facts = {name: value for name, value in facts.items() if value}
    named = [_lora_text(lora) for lora in loras] if isinstance(loras, list) else []
    return facts | ({"teacher_loras": named} if named else {}) | {"output": values.get("output")}


def _lora_text(lora: object) -> str:
    if not isinstance(lora, Mapping):
        return str(lora)
    return f"{lora.get('path')} at {lora.get('strength')}"
