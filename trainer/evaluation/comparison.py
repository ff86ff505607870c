"""What a comparison is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...app.config.request import ModelFiles
from ...app.report.data import Arm
from ...core.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What to compare. None and empty take what the LoRAs' recipes or the family say."""

    model: ModelFiles
    loras: tuple[tuple[str, float], ...]
    output: Path
    prompts: tuple[str, ...] = ()
    training_prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = tuple(range(9))
    steps: int | None = None
    teacher_steps: int | None = None
    guidance_scale: float | None = None
    negative: str = ""
    with_loras: tuple[tuple[str, float], ...] = ()
    baseline: bool = True
    features: Path | None = None
    resolution: str = ""
    prediction: str = "auto"
    zero_terminal_snr: str = "auto"
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False

    def check(self) -> None:
        """Raise SettingsError for what cannot be compared."""
        if len(self.seeds) < 2:
            raise SettingsError(
                f"Found {len(self.seeds)} seed; diversity needs at least 2, such as --seeds 0-8."
            )
        bounds = (
            ("steps", self.steps, 2, 128),
            ("teacher steps", self.teacher_steps, 1, 1000),
            ("guidance scale", self.guidance_scale, 0, 50),
            ("batch size", self.batch_size, 1, 1024),
        )
        for name, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                raise SettingsError(f"{name} is {value:g}; expected {low} to {high}.")


@dataclass(frozen=True)
class Comparison:
    """What a comparison wrote and measured."""

    report: Path
    arms: dict[str, dict[str, float]]
    labels: dict[str, tuple[str, str]]
    units: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {"report": str(self.report), "arms": self.arms}

    def to_text(self) -> str:
        """A table for the terminal."""
        return measures_table(self.arms, self.labels, self.units) + f"\nReport: {self.report}"


def measures_table(
    arms: dict[str, dict[str, float]],
    labels: dict[str, tuple[str, str]],
    units: dict[str, str],
) -> str:
    """Arms by row, evaluations and labelled measures by column."""
    keys = [key for key in labels if any(key in m for m in arms.values())]
    width = max(map(len, arms)) + 2
    heads = [labels[key][0] for key in keys]
    lines = [f"{'':{width}}{'evals':>6}" + "".join(f"  {head}" for head in heads)]
    for name, m in arms.items():
        line = f"{name:{width}}{m['evaluations']:>6.0f}"
        for key, head in zip(keys, heads, strict=True):
            value = m.get(key, float("nan"))
            shown = f"{value:.1%}" if units.get(key, "share") == "share" else f"{value:.4f}"
            line += f"  {shown:>{len(head)}}"
        lines.append(line)
    return "\n".join(lines)


def measures_by_arm(arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """What was measured, by arm; what an image costs is among it."""
    return {
        arm.name: {
            "evaluations": arm.evaluations,
            "seconds_per_picture": arm.seconds_per_picture,
            **arm.measures,
        }
        for arm in arms
    }
