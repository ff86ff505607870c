"""The report's numbers as HTML: the sentence and tiles of the first screen, and the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from .charts import NOT_MEASURED, readable, readable_number

if TYPE_CHECKING:
    from .report import Arm, ReportData

SHARE = "share"


def verdict(data: ReportData) -> str:
    """One or two sentences: what the arm in focus saves, and where it stands furthest below."""
    own, teacher = data.arms[data.focus], data.arms[0]
    if own is teacher:
        return f"<strong>{escape(own.name)}</strong> alone; nothing to compare it with."
    gains = []
    fewer = _ratio(teacher.evaluations, own.evaluations)
    faster = _ratio(teacher.seconds_per_picture, own.seconds_per_picture)
    if fewer > 1:
        gains.append(f"{_times(fewer)} fewer network evaluations")
    if faster > 1:
        gains.append(f"{_times(faster)} faster")
    text = f"<strong>{escape(own.name)}</strong>"
    text += f": {' and '.join(gains)} than the teacher. " if gains else ". "
    return text + _furthest_below(data, own, teacher)


def _furthest_below(data: ReportData, own: Arm, teacher: Arm) -> str:
    changes = {
        key: own.measures[key] - teacher.measures[key]
        for key in data.measure_labels
        if _is_share(data, key) and _known(own, key) and _known(teacher, key)
    }
    if not changes:
        return "How good its pictures are was not measured; judge by the pictures below."
    worst = min(changes, key=lambda key: changes[key])
    name = escape(_label(data, worst))
    points = abs(100 * changes[worst])
    if points < 0.05 or changes[worst] > 0:
        return "No percentage lies below the teacher's."
    return f"Its largest loss against the teacher: {points:.1f} points, in {name.lower()}."


def tiles(data: ReportData) -> str:
    """The first screen's numbers: each for the arm in focus, with the other arms under it."""
    items = [
        _tile(data, "Network evaluations", lambda arm: arm.evaluations, ""),
        _tile(data, "Seconds per picture", lambda arm: arm.seconds_per_picture, "s"),
    ]
    for key in data.measure_labels:
        if any(key in arm.measures for arm in data.arms):
            unit = data.measure_units.get(key, SHARE)
            items.append(_tile(data, _label(data, key), _measure_of(key), unit))
    return f'<ul class="tiles" aria-label="Result">{"".join(items)}</ul>'


def _measure_of(key: str) -> Callable[[Arm], float]:
    return lambda arm: arm.measures.get(key, math.nan)


def _tile(data: ReportData, label: str, number: Callable[[Arm], float], unit: str) -> str:
    own = data.arms[data.focus]
    values = {id(arm): number(arm) for arm in data.arms}
    finite = [abs(value) for value in values.values() if math.isfinite(value)]
    full = 1.0 if unit == SHARE else max(finite, default=1.0)
    rows = "".join(
        f"<li><div><span>{escape(arm.name)}</span><b>{shown(values[id(arm)], unit)}</b></div>"
        f"{_track(values[id(arm)], full)}</li>"
        for arm in data.arms
        if arm is not own
    )
    others = f'<ul class="others">{rows}</ul>' if rows else ""
    return (
        f'<li><h2>{escape(label)}</h2><p class="value">{shown(values[id(own)], unit)}</p>'
        f"{_track(values[id(own)], full, ' own')}{others}</li>"
    )


def _track(value: float, full: float, kind: str = "") -> str:
    share = min(1.0, max(0.0, _ratio(value, full))) if math.isfinite(value) else 0.0
    return f'<span class="track{kind}"><i style="width:{100 * share:.1f}%"></i></span>'


def comparison(data: ReportData, keys: Sequence[str]) -> str:
    """The table: one row per arm; each number also as the exact value of a <data> element."""
    names = ["Evaluations per picture", "Seconds per picture"]
    names += [_label(data, key) for key in keys]
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    best = {key: _best(data, key) for key in keys}
    rows = "".join(_row(data, arm, keys, best) for arm in data.arms)
    return (
        '<div class="scroll" role="region" aria-label="Comparison of all arms" tabindex="0">'
        f'<table><thead><tr><th scope="col">Pictures by</th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(data: ReportData, arm: Arm, keys: Sequence[str], best: dict[str, Arm | None]) -> str:
    teacher = data.arms[0]
    cells = [
        _cell(arm.evaluations, "", _gain(arm, teacher, arm.evaluations, teacher.evaluations)),
        _cell(
            arm.seconds_per_picture,
            "s",
            _gain(arm, teacher, arm.seconds_per_picture, teacher.seconds_per_picture, "faster"),
        ),
    ]
    for key in keys:
        unit = data.measure_units.get(key, SHARE)
        value, reference = (a.measures.get(key, math.nan) for a in (arm, teacher))
        note = "" if arm is teacher else _difference(value - reference, unit)
        cells.append(_cell(value, unit, note, best=best[key] is arm))
    own = ' class="own"' if arm is data.arms[data.focus] and arm is not teacher else ""
    note = f"<span>{escape(arm.note)}</span>" if arm.note else ""
    head = f'<th scope="row">{escape(arm.name)}{note}</th>'
    return f"<tr{own}>{head}{''.join(cells)}</tr>"


def _cell(value: float, unit: str, note: str, *, best: bool = False) -> str:
    small = f"<small>{note}</small>" if note else ""
    kind = ' class="best"' if best else ""
    return f"<td{kind}>{shown(value, unit)}{small}</td>"


def shown(value: float, unit: str) -> str:
    """A number for people, with its exact value for machines; "not measured" unless finite."""
    if not math.isfinite(value):
        return NOT_MEASURED
    if unit == SHARE:
        text = f"{100 * value:.1f}%".replace("-", "\N{MINUS SIGN}")
    else:
        text = f"{value:,d}" if isinstance(value, int) else readable_number(value)
        text += f" {escape(unit)}" if unit else ""
    return f'<data value="{json.dumps(value)}">{text}</data>'


def _gain(arm: Arm, teacher: Arm, value: float, reference: float, word: str = "fewer") -> str:
    ratio = _ratio(reference, value)
    return f"{_times(ratio)} {word}" if arm is not teacher and ratio > 1.005 else ""


def _difference(change: float, unit: str) -> str:
    if not math.isfinite(change):
        return ""
    size = 100 * change if unit == SHARE else change
    text = f"{size:+.1f}" if unit == SHARE else f"{size:+.3g}"
    text = text.replace("-0.0", "0.0").replace("+0.0", "0.0") if abs(size) < 0.05 else text
    word = "points" if unit == SHARE else unit
    return escape(f"{text.replace('-', chr(0x2212))} {word}".rstrip())


def measure_terms(data: ReportData, keys: Sequence[str]) -> str:
    """What each measure means, in plain words."""
    terms = "".join(
        f"<div><dt>{escape(data.measure_labels[key][0])}</dt>"
        f"<dd>{escape(data.measure_labels[key][1])}</dd></div>"
        for key in keys
    )
    return f'<dl class="terms">{terms}</dl>' if terms else ""


def _best(data: ReportData, key: str) -> Arm | None:
    """The arm with the highest value besides the teacher, where several are compared."""
    rivals = [arm for arm in data.arms[1:] if _known(arm, key)]
    return max(rivals, key=lambda arm: arm.measures[key]) if len(rivals) > 1 else None


def _known(arm: Arm, key: str) -> bool:
    return math.isfinite(arm.measures.get(key, math.nan))


def _is_share(data: ReportData, key: str) -> bool:
    return data.measure_units.get(key, SHARE) == SHARE


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
