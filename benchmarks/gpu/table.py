"""Tables of what `run.py` measured, with the bars that the project set itself.

python benchmarks/gpu/table.py FOLDER [--results benchmarks/results/gpu.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Parts = dict[str, dict[str, Any]]
GIB = 2**30
NOT_MEASURED = "not measured"
COLUMNS: dict[str, Callable[[Row], str]] = {
    "s": lambda row: f"{row['seconds']:.4g}",
    "least to most": lambda row: f"{row['least']:.4g} to {row['most']:.4g} ({row['repeats']})",
    "plain s": lambda row: f"{row['plain_seconds']:.4g}",
    "with compiling s": lambda row: f"{row['compiling_update']:.1f}",
    "peak allocated GiB": lambda row: f"{row['allocated'] / GIB:.2f}",
    "peak reserved GiB": lambda row: f"{row['reserved'] / GIB:.2f}",
    "counted / allocated": lambda row: f"{row['counted_share']:.3f}",
    "kernel share, profiled": lambda row: f"{row['kernel_share']:.1%}",
    "kernel share, plain": lambda row: f"{row['kernel_share_of_plain']:.1%}",
    "difference": lambda row: f"{row['difference']:.1e}",
    "updates done": lambda row: str(row["updates"]),
    "said": lambda row: row["said"],
}
REASONS = ("skipped", "out_of_memory", "error")


def row_of(parts: Parts, part: str, case: str) -> Row:
    """A measured row, or an empty one."""
    return parts.get(part, {}).get("rows", {}).get(case, {})


def reserved(part: str, case: str) -> Callable[[Parts], float | None]:
    """Peak reserved GiB of a case."""

    def found(parts: Parts) -> float | None:
        value = row_of(parts, part, case).get("reserved")
        return None if value is None else value / GIB

    return found


def time_ratio(name: str, way: str) -> Callable[[Parts], float | None]:
    """Seconds of one of our ways over those of three copies."""

    def found(parts: Parts) -> float | None:
        ours, theirs = (row_of(parts, f"copies-{name}", f"{name}, {which}").get("seconds")
                        for which in (way, "three copies"))  # fmt: skip
        return ours / theirs if ours and theirs else None

    return found


def share(part: str, case: str, key: str) -> Callable[[Parts], float | None]:
    """A number of a row."""
    return lambda parts: row_of(parts, part, case).get(key)


# words, measured, bar, whether the bar is the least (else the most)
BARS: list[tuple[str, Callable[[Parts], float | None], float, bool]] = [
    ("SDXL, 1024, bf16 base, checkpointing: peak reserved GiB",
     reserved("memory-sdxl", "sdxl, 1024, checkpointing"), 11.0, False),
    ("SDXL, 1024, int8 base, 8-bit optimizer, checkpointing: peak reserved GiB",
     reserved("memory-sdxl", "sdxl, 1024, checkpointing, int8 base, 8-bit optimizer"), 7.5, False),
    ("SD3.5-M, 1024, bf16 base, checkpointing: peak reserved GiB",
     reserved("memory-sd3", "sd3, 1024, checkpointing"), 12.0, False),
    ("SD1.5, 512, checkpointing: peak reserved GiB",
     reserved("memory-sd1", "sd1, 512, checkpointing"), 5.5, False),
    *((f"{name}, {way}: time / three copies", time_ratio(name, way), bar, False)
      for name in ("sdxl", "sd3")
      for way, bar in (("separate roll-outs", 0.85), ("shared roll-outs", 0.6), ("fast", 0.45))),
    *((f"{name}: share of an update in which a kernel runs",
       share("profile", f"{name}, shared roll-outs", "kernel_share"), 0.85, True)
      for name in ("sdxl", "sd3")),
    *((f"SDXL, 3 updates under {gib} GiB",
       share("caps", f"sdxl, {gib} GiB, {rest}", "updates"), 3, True)
      for gib, rest in ((12.0, "gradient_checkpointing True"),
                        (11.0, "gradient_checkpointing True"),
                        (7.5, "gradient_checkpointing True, optimizer adamw8bit, "
                              "base_weights int8"))),
]  # fmt: skip


def verdict(value: float | None, bar: float, least: bool) -> str:
    """met, missed or not measured."""
    if value is None:
        return NOT_MEASURED
    return "met" if (value >= bar if least else value <= bar) else "missed"


def bars_table(parts: Parts) -> list[str]:
    """Every bar beside what was measured."""
    lines = ["| what | measured | bar | |", "|---|---|---|---|"]
    for words, measure, bar, least in BARS:
        value = measure(parts)
        shown = NOT_MEASURED if value is None else f"{value:.3g}"
        sign = ">=" if least else "<="
        lines.append(f"| {words} | {shown} | {sign} {bar:g} | {verdict(value, bar, least)} |")
    return lines


def part_table(rows: dict[str, Row]) -> list[str]:
    """One part's rows, with the columns that any of them has, and why others are missing."""
    shown = {case: cells(row) for case, row in rows.items()}
    names = [name for name in COLUMNS if any(name in found for found in shown.values())]
    lines = [f"| case | {' | '.join([*names, 'note'])} |", "|---" * (len(names) + 2) + "|"]
    for case, found in shown.items():
        reasons = [f"{key.replace('_', ' ')}: {rows[case][key]}" for key in REASONS
                   if key in rows[case]]  # fmt: skip
        values = [found.get(name, "") for name in names]
        lines.append(
            f"| {case} | {' | '.join([*values, *reasons] if reasons else [*values, ''])} |"
        )
    for case, row in rows.items():
        if "top" in row:
            lines += ["", f"{case}, by time in kernels:", ""]
            lines += [f"- {name}: {part:.1%} in {count} calls" for name, part, count in row["top"]]
    return lines


def cells(row: Row) -> dict[str, str]:
    """The columns that a row can fill."""
    found = {}
    for name, write in COLUMNS.items():
        try:
            found[name] = write(row)
        except (KeyError, TypeError):
            continue
    return found


def page(parts: Parts) -> str:
    """The whole page."""
    facts = next(iter(parts.values()))["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device")
    lines = ["# Measured on a GPU", "", f"{facts['device']}; {versions}.", "",
             "Batch 1, rank 64, all layers, N = 4 unless said; random weights.", "",
             "## Bars", "", *bars_table(parts)]  # fmt: skip
    for name, part in parts.items():
        lines += ["", f"## {name}", "", f"`{part['command']}`", "", *part_table(part["rows"])]
    return "\n".join(lines) + "\n"


def read(folder: Path) -> Parts:
    """What was measured, by part."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 where nothing was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, help="the page; default: print it")
    chosen = parser.parse_args(arguments)
    parts = read(chosen.folder)
    if not parts:
        print(f"{chosen.folder} holds no results of run.py.", file=sys.stderr)
        return 2
    text = page(parts)
    if chosen.results:
        chosen.results.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
