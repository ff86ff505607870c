"""What a report measured, read from its report.json: diversity and speed by arm.

The file may come from anywhere: its size is limited, every value is checked, names are shortened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import SettingsError
from ..runs.tables import finite
from .names import one_line

MAX_BYTES = 64 << 20
MAX_ARMS, MAX_MEASURES = 24, 12


@dataclass(frozen=True)
class Measurements:
    """A table for people.

    Args:
        head: column titles, the first one for the arm's name.
        rows: one per arm; what was not measured is "-".
        notes: what each measured column means.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    prompts: int
    seeds: int


def read_measurements(path: Path) -> Measurements:
    """The table of the report.json at `path`.

    Raises:
        SettingsError: the file is missing, far too large, or no report of this program.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} has more than {MAX_BYTES >> 20} MiB; a report has not.")
        content = json.loads(path.read_text(encoding="utf-8"))
        return _measurements(content)
    except OSError as error:
        raise SettingsError(
            f"The report {path} cannot be read ({error.strerror or error}). Name the report.json "
            "that `compare` or a finished run wrote, or leave --report out."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not a report of this program ({one_line(error, 100)}). Name the "
            "report.json that `compare` or a finished run wrote, or leave --report out."
        ) from error


def _measurements(content: Mapping[str, Any]) -> Measurements:
    arms = content["arms"]
    if not isinstance(arms, list) or not 1 <= len(arms) <= MAX_ARMS:
        raise ValueError("it lists no arms, or too many")
    labels, units = content.get("measure_labels", {}), content.get("measure_units", {})
    keys = [key for key in labels if any(key in arm["measures"] for arm in arms)][:MAX_MEASURES]
    rows = []
    for arm in arms:
        measured = [_shown(arm["measures"].get(key), units.get(key, "share")) for key in keys]
        evaluations = _number(arm["evaluations"])
        seconds = _number(arm["seconds_per_picture"])
        cost = (
            "-" if evaluations is None else f"{evaluations:.0f}",
            "-" if seconds is None else f"{seconds:.2f}",
        )
        rows.append((one_line(arm["name"], 80), *cost, *measured))
    titles = [one_line(labels[key][0], 60) for key in keys]
    return Measurements(
        head=("", "Network evaluations an image", "Seconds an image", *titles),
        rows=tuple(rows),
        notes=tuple(f"{one_line(labels[key][0], 60)}: {one_line(labels[key][1])}" for key in keys),
        prompts=len(content["prompts"]),
        seeds=len(content["seeds"]),
    )


def _number(value: object) -> float | None:
    found = finite(value)
    return None if found is None or abs(found) >= 1e12 else found


def _shown(value: object, unit: object) -> str:
    number = _number(value)
    if number is None:
        return "-"
    if unit == "share":
        return f"{number:.1%}"
    return f"{number:.4g}" + (f" {one_line(unit, 20)}" if unit else "")
