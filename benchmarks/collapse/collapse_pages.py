"""Tables and curves of the collapse benchmarks, for any world with the same four objectives."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

NAMES = {
    "dmd": "plain DMD",
    "detach_only": "detach only",
    "no_detach": "diversity loss, no detach",
    "dp_dmd": "DP-DMD",
}
COLOURS = {"dmd": "#d1495b", "detach_only": "#edae49", "no_detach": "#66a182", "dp_dmd": "#2e6f9e"}
SHOWN = (
    ("modes", "modes present (of 8)", ".2f"),
    ("effective_modes", "effective modes", ".2f"),
    ("shift", "shift of occupation", ".3f"),
    ("on_mode", "on a mode", ".1%"),
    ("distance", "energy distance", ".4f"),
)
WORST = {"modes": min, "effective_modes": min, "shift": max, "on_mode": min, "distance": max}
WIDTH, HEIGHT, MARGIN = 300, 170, 34


def write_pages(
    folder: Path,
    found: Mapping[tuple[float, str], Sequence[dict]],
    chosen: Mapping[float, float],
    tuning: Mapping[float, Mapping[float, dict]],
    changes: Mapping[tuple[float, str], Sequence[dict]],
    updates: int,
) -> None:
    """Write collapse-2d.json, .md and .svg into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "updates": updates,
        "rates": {f"{g:g}": rate for g, rate in chosen.items()},
        "tuning": {f"{g:g}": {f"{r:g}": v for r, v in t.items()} for g, t in tuning.items()},
        "runs": {f"{o} at guidance {g:g}": runs for (g, o), runs in found.items()},
        "changes": {f"{name} at guidance {g:g}": runs for (g, name), runs in changes.items()},
    }
    text = json.dumps(rounded(numbers))
    (folder / "collapse-2d.json").write_text(text + "\n", encoding="utf-8")
    (folder / "collapse-2d.svg").write_text(curves(found), encoding="utf-8")
    lines = [
        "# What four objectives keep of a two-dimensional mixture",
        "",
        f"`python benchmarks/collapse/mixture.py --folder F{' --changes …' if changes else ''}`, "
        f"{platform.machine()} CPU, {os.cpu_count()} cores, one thread, torch "
        f"{torch.__version__.split('+')[0]}; {updates:,} student updates of 256 points a run, "
        f"{mean(r['seconds'] for runs in found.values() for r in runs):.0f} s each.",
        "Mean over training seeds, the worst seed in brackets. `teacher`: 28 guided steps from "
        "other noise, which shows what chance does.",
        "",
    ]
    for guidance in dict.fromkeys(g for g, _ in found):
        changed = {name: runs for (g, name), runs in changes.items() if g == guidance}
        lines += table(guidance, found, chosen[guidance], changed)
    lines += ["![Curves](collapse-2d.svg)", ""]
    (folder / "collapse-2d.md").write_text("\n".join(lines), encoding="utf-8")


def table(guidance: float, found: Mapping, rate: float, changes: Mapping) -> list[str]:
    """The objectives at one guidance scale after the last update, and DP-DMD with changes."""
    lines = [f"## Guidance {guidance:g}, learning rate {rate:g}", "", *head("objective")]
    lines.append(row("teacher", [run["teacher"] for run in found[guidance, "dmd"]]))
    for objective, name in NAMES.items():
        lines.append(row(name, [run["curve"][-1] for run in found[guidance, objective]]))
    for name, runs in changes.items():
        lines.append(row(f"DP-DMD, {name}", [run["curve"][-1] for run in runs]))
    arms = {"plain DMD": found[guidance, "dmd"], "DP-DMD": found[guidance, "dp_dmd"]}
    own = mean(run["teacher"]["effective_modes"] for run in found[guidance, "dmd"])
    lost = {
        name: own - mean(run["curve"][-1]["effective_modes"] for run in runs)
        for name, runs in {**arms, **changes}.items()
    }
    said = ", ".join(
        f"{name} {value:.2f}"
        + ("" if name == "plain DMD" else f" (keeps {1 - value / lost['plain DMD']:.0%} of that)")
        for name, value in lost.items()
    )
    return [*lines, "", f"Effective modes lost: {said}.", ""]


def head(first: str) -> list[str]:
    """Head of a table."""
    return [
        f"| {first} | {' | '.join(t for _, t, _ in SHOWN)} |",
        f"|{' --- |' * (len(SHOWN) + 1)}",
    ]


def row(name: str, ends: Sequence[dict]) -> str:
    """One line: mean and worst."""
    cells = []
    for key, _, form in SHOWN:
        values = [end[key] for end in ends]
        worst = f" ({WORST[key](values):{form}})" if len(values) > 1 else ""
        cells.append(f"{mean(values):{form}}{worst}")
    return f"| {name} | {' | '.join(cells)} |"


def curves(found: Mapping[tuple[float, str], Sequence[dict]]) -> str:
    """Diversity (left) and quality (right) over updates, a row for each guidance scale."""
    scales = list(dict.fromkeys(g for g, _ in found))
    height = len(scales) * (HEIGHT + MARGIN) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + MARGIN) + 20} '
        f'{height}" font-family="sans-serif" font-size="11" fill="#444">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    for place, (objective, name) in enumerate(NAMES.items()):
        x = MARGIN + place * 155
        parts.append(f'<rect x="{x}" y="10" width="14" height="4" fill="{COLOURS[objective]}"/>')
        parts.append(f'<text x="{x + 18}" y="16">{name}</text>')
    for number, scale in enumerate(scales):
        top = 34 + number * (HEIGHT + MARGIN)
        for column, key in enumerate(("effective_modes", "on_mode")):
            parts += panel(found, scale, key, MARGIN + column * (WIDTH + MARGIN), top)
    return "\n".join([*parts, "</svg>", ""])


def panel(found: Mapping, scale: float, key: str, left: int, top: int) -> list[str]:
    """One chart: the mean of every objective, and the teacher as a dashed line."""
    lines = {
        objective: [mean(values) for values in zip(*(
            [point[key] for point in run["curve"]] for run in found[scale, objective]
        ), strict=True)]
        for objective in NAMES
    }  # fmt: skip
    teacher = mean(run["teacher"][key] for run in found[scale, "dmd"])
    values = [v for line in lines.values() for v in line] + [teacher]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return top + 18 + (HEIGHT - 30) * (1 - (value - low) / span)

    title = {"effective_modes": "effective modes", "on_mode": "share on a mode"}.get(key, key)
    parts = [
        f'<text x="{left}" y="{top + 8}">guidance {scale:g}: {title}</text>',
        f'<text x="{left - 28}" y="{y(high) + 4:.1f}">{high:.2f}</text>',
        f'<text x="{left - 28}" y="{y(low) + 4:.1f}">{low:.2f}</text>',
        f'<line x1="{left}" x2="{left + WIDTH - 20}" y1="{y(teacher):.1f}" y2="{y(teacher):.1f}" '
        'stroke="#888" stroke-dasharray="4 3"/>',
    ]
    for objective, line in lines.items():
        step = (WIDTH - 20) / max(1, len(line) - 1)
        points = " ".join(f"{left + i * step:.1f},{y(v):.1f}" for i, v in enumerate(line))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[objective]}" '
            'stroke-width="1.8"/>'
        )
    return parts


def rounded(value):
    """Numbers to five significant digits, all else as it is."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
