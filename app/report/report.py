"""The report of a run: report.html (one file, opens offline), report.json, and image sheets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import OutputError
from ...core.files import atomic_write
from .data import ReportData
from .images import embedded_side, image_grid, thumbnail
from .page import page

LABEL_LENGTH = 100
# What of the data report.json holds, in its order.
WRITTEN = ("title", "subtitle", "lora", "facts", "prompts", "seeds", "arms", "measure_labels",
           "measure_units", "notes", "metrics")  # fmt: skip


def write_report(folder: Path, data: ReportData) -> Path:
    """Path of report.html, written into `folder` with report.json and one grid-*.png per arm.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error}.") from error
    sheets = sheet_names([arm.name for arm in data.arms])
    for arm, name in zip(data.arms, sheets, strict=True):
        with atomic_write.atomic_path(folder / name) as temporary:
            _sheet(data.prompts, arm.images).save(temporary, format="PNG")
    numbers = json.dumps(report_numbers(data), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write.write_text(folder / "report.json", numbers + "\n")
    atomic_write.write_text(folder / "report.html", page(data))
    return folder / "report.html"


def report_numbers(data: ReportData) -> dict[str, Any]:
    """The numbers of the page, ready for JSON; null stands for what was not measured."""
    numbers = {name: getattr(data, name) for name in WRITTEN}
    numbers["arms"] = [
        {
            "name": arm.name,
            "note": arm.note,
            "evaluations": arm.evaluations,
            "seconds_per_picture": arm.seconds_per_image,
            "measures": arm.measures,
            "sheet": sheet,
        }
        for arm, sheet in zip(data.arms, sheet_names([a.name for a in data.arms]), strict=True)
    ]
    return _plain(numbers)


def sheet_names(arms: Sequence[str]) -> list[str]:
    """grid-<arm>.png for each arm: lower-case ASCII, no two alike."""
    names: list[str] = []
    for arm in arms:
        stem = re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")[:60] or "arm"
        same = sum(bool(re.fullmatch(rf"grid-{stem}(-no\d+)?\.png", name)) for name in names)
        names.append(f"grid-{stem}-no{same + 1}.png" if same else f"grid-{stem}.png")
    return names


def _sheet(prompts: Sequence[str], images: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    side = embedded_side(len(prompts) * len(images[0]))
    labels = [" ".join(prompt.split())[:LABEL_LENGTH] for prompt in prompts]
    rows = [[np.asarray(thumbnail(pixels, side)) for pixels in row] for row in images]
    return image_grid(list(zip(labels, rows, strict=True)))


def _plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
