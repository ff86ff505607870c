"""What a comparison answers: a report, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...app.report.data import Arm, ReportData
from .evaluate import EvaluationSet
from .measures import MeasureSet


@dataclass(frozen=True)
class Comparison:
    """What a comparison wrote and measured.

    Attributes:
        report: the page.
        arms: numbers by name, by arm.
        labels: measure -> (short label, plain words).
        units: measure -> unit; "share", the default, is shown in percent.
    """

    report: Path
    arms: dict[str, dict[str, float]]
    labels: dict[str, tuple[str, str]]
    units: dict[str, str]

    @classmethod
    def of(cls, report: Path, arms: Sequence[Arm], measures: MeasureSet) -> Comparison:
        """The comparison of these arms."""
        return cls(report, measures_by_arm(arms), measures.labels, measures.units)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {"report": str(self.report), "arms": self.arms}

    def to_text(self) -> str:
        """A table for the terminal."""
        return f"{self.table()}\nReport: {self.report}"

    def table(self) -> str:
        """Arms by row, evaluations and labelled measures by column."""
        keys = [key for key in self.labels if any(key in m for m in self.arms.values())]
        width = max(map(len, self.arms)) + 2
        heads = [self.labels[key][0] for key in keys]
        lines = [f"{'':{width}}{'evals':>6}" + "".join(f"  {head}" for head in heads)]
        for name, m in self.arms.items():
            line = f"{name:{width}}{m['evaluations']:>6.0f}"
            for key, head in zip(keys, heads, strict=True):
                value = m.get(key, float("nan"))
                kind = ".1%" if self.units.get(key, "share") == "share" else ".4f"
                line += f"  {value:>{len(head)}{kind}}"
            lines.append(line)
        return "\n".join(lines)


def measures_by_arm(arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """What was measured, by arm; what an image costs is among it."""
    return {
        arm.name: {
            "evaluations": arm.evaluations,
            "seconds_per_picture": arm.seconds_per_image,
            **arm.measures,
        }
        for arm in arms
    }


def measured_report(
    arms: Sequence[Arm],
    material: EvaluationSet,
    measures: MeasureSet,
    shown: int,
    **rest: Any,
) -> ReportData:
    """A report of these arms that shows the images of the first prompts.

    Args:
        shown: how many prompts' images are shown.
        rest: what else the report says, see `ReportData`.
    """
    return ReportData(
        prompts=list(material.prompts[:shown]),
        seeds=list(material.seeds),
        arms=[replace(arm, images=arm.images[:shown]) for arm in arms],
        measure_labels=measures.labels,
        measure_units=measures.units,
        **rest,
    )
