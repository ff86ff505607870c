"""The report's numbers: the sentence of the first screen, and the columns of tiles and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .charts import readable, readable_number
from .data import Arm, ReportData

SHARE = "share"


def verdict(data: ReportData) -> str:
    """What goes on after the name of the arm in focus: what it saves, where it stands lowest."""
    own, teacher = data.arms[data.focus], data.arms[0]
    if own is teacher:
        return " alone; nothing to compare it with."
    gains = []
    fewer = _ratio(teacher.evaluations, own.evaluations)
    faster = _ratio(teacher.seconds_per_image, own.seconds_per_image)
    if fewer > 1:
        gains.append(f"{_times(fewer)} fewer network evaluations")
    if faster > 1:
        gains.append(f"{_times(faster)} faster")
    text = f": {' and '.join(gains)} than the teacher. " if gains else ". "
    return text + _furthest_below(data, own, teacher)


def _furthest_below(data: ReportData, own: Arm, teacher: Arm) -> str:
    changes = {
        key: own.measures[key] - teacher.measures[key]
        for key in data.measure_labels
        if _unit(data, key) == SHARE and _known(own, key) and _known(teacher, key)
    }
    if not changes:
        return "The quality of its images was not measured; compare the images below."
    worst = min(changes, key=lambda key: changes[key])
    points = abs(100 * changes[worst])
    if points < 0.05 or changes[worst] > 0:
        return "No percentage lies below the teacher's."
    name = _label(data, worst).lower()
    return f"Its largest loss against the teacher: {points:.1f} points, in {name}."


@dataclass(frozen=True)
class Column:
    """One number of every arm; lists have one entry an arm, the teacher's first.

    Attributes:
        label: its name on a tile.
        heading: its name over the table's column.
        unit: "share" is shown in percent.
        values: not finite where nothing was measured.
        bars: percent of a tile's bar that the value fills.
        remarks: how the value stands to the teacher's; may be empty.
        best: the arm with the highest value besides the teacher, where several are compared.
    """

    label: str
    heading: str
    unit: str
    values: list[float]
    bars: list[float]
    remarks: list[str]
    best: int | None = None


def columns(data: ReportData, keys: Sequence[str]) -> list[Column]:
    """What images cost, then these measures."""
    evaluations: list[float] = [arm.evaluations for arm in data.arms]
    seconds = [arm.seconds_per_image for arm in data.arms]
    costs = (
        ("Network evaluations", "Evaluations per image", "", evaluations, "fewer"),
        ("Seconds per image", "Seconds per image", "s", seconds, "faster"),
    )
    return [
        Column(label, heading, unit, values, _bars(values, unit), _gains(values, word))
        for label, heading, unit, values, word in costs
    ] + [_measured(data, key) for key in keys]


def _measured(data: ReportData, key: str) -> Column:
    unit, label = _unit(data, key), _label(data, key)
    values = [arm.measures.get(key, math.nan) for arm in data.arms]
    remarks = ["", *(_difference(value - values[0], unit) for value in values[1:])]
    others = [row for row in range(1, len(values)) if math.isfinite(values[row])]
    best = max(others, key=lambda row: values[row]) if len(others) > 1 else None
    return Column(label, label, unit, values, _bars(values, unit), remarks, best)


def _bars(values: Sequence[float], unit: str) -> list[float]:
    finite = [abs(value) for value in values if math.isfinite(value)]
    full = 1.0 if unit == SHARE else max(finite, default=1.0)
    return [100 * min(1.0, max(0.0, _ratio(value, full))) for value in values]


def _gains(values: Sequence[float], word: str) -> list[str]:
    """How many times less than the teacher each arm takes."""
    ratios = [_ratio(values[0], value) for value in values[1:]]
    return ["", *(f"{_times(ratio)} {word}" if ratio > 1.005 else "" for ratio in ratios)]


def shown(value: float, unit: str) -> str:
    """A finite number for people."""
    if unit == SHARE:
        return f"{100 * value:.1f}%".replace("-", "\N{MINUS SIGN}")
    text = f"{value:,d}" if isinstance(value, int) else readable_number(value)
    return text + (f" {unit}" if unit else "")


def _difference(change: float, unit: str) -> str:
    if not math.isfinite(change):
        return ""
    size = 100 * change if unit == SHARE else change
    text = f"{size:+.1f}" if unit == SHARE else f"{size:+.3g}"
    text = "0.0" if text in ("-0.0", "+0.0") else text
    word = "points" if unit == SHARE else unit
    return f"{text.replace('-', chr(0x2212))} {word}".rstrip()


def _known(arm: Arm, key: str) -> bool:
    return math.isfinite(arm.measures.get(key, math.nan))


def _unit(data: ReportData, key: str) -> str:
    return data.measure_units.get(key, SHARE)


def _label(data: ReportData, key: str) -> str:
    return data.measure_labels[key][0] if key in data.measure_labels else readable(key)


def _ratio(above: float, below: float) -> float:
    """above / below, and 0 where that says nothing."""
    meaningful = math.isfinite(above) and math.isfinite(below) and below > 0
    return above / below if meaningful else 0.0


def _times(ratio: float) -> str:
    return (
        f"{ratio:.0f}\N{MULTIPLICATION SIGN}"
        if ratio >= 10
        else (f"{ratio:.1f}".removesuffix(".0") + "\N{MULTIPLICATION SIGN}")
    )
