"""What a run's files say of it, read without ever failing: what is damaged is left out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from ...core.errors import DPDMDError
from ..config.distill_config import DistillConfig
from .directory import EVALUATIONS, METRICS, PROMPTS, RunDirectory
from .tables import finite, read_json

# A long run's metrics are read in part: about its first and its last 3,000 updates.
HEAD_BYTES, TAIL_BYTES = 1 << 20, 1 << 20
MAX_PROMPT_BYTES = 64 << 20
# An earlier student counts as better when it is nearer by this many standard errors.
CLEARLY = 2.0
LAYOUT = ("teacher_distance", "distances")

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The files of one run as plain data; what is missing or damaged is empty.

    Args:
        metrics: lines of metrics.jsonl by step.
        evaluations: lines of evaluations.jsonl by step.
        prompts: the prompts that are trained on.
        platform: as `sys.platform`, of the machine that the run is on.
    """

    config: DistillConfig = field(default_factory=DistillConfig)
    metrics: Sequence[Line] = ()
    evaluations: Sequence[Line] = ()
    prompts: Sequence[str] = ()
    progress: Line = field(default_factory=dict)
    result: Line = field(default_factory=dict)
    platform: str = sys.platform

    def values(self, name: str) -> list[float]:
        """The finite values of one metric, in the order of updates."""
        return [value for line in self.metrics if (value := number(line, name)) is not None]

    @property
    def step(self) -> int:
        """Finished student updates."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


def read_facts(run: RunDirectory) -> RunFacts:
    """The facts of a run. Never raises: a file that cannot be read counts as empty."""
    return RunFacts(
        config=_config(read_json(run.path / "settings.json").get("config")),
        metrics=_lines(run.path / METRICS),
        evaluations=_lines(run.path / EVALUATIONS),
        prompts=_prompts(run.path / PROMPTS),
        progress=read_json(run.path / "progress.json"),
        result=read_json(run.path / "result.json"),
    )


def number(line: Line, name: str) -> float | None:
    """A finite number of a line, or None."""
    return finite(line.get(name))


def window_medians(values: Sequence[float], size: int) -> list[float]:
    """Medians of consecutive stretches of `size` values; the last one ends with the last value."""
    first = len(values) % size
    return [median(values[i : i + size]) for i in range(first, len(values), size)]


def clearly_nearer(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is smaller than `other`, prompt by prompt, beyond what chance explains."""
    return clearly_above_zero([b - a for a, b in zip(one, other, strict=True)])


def clearly_above_zero(values: Sequence[float]) -> bool:
    """Whether the mean of what prompts say is above zero beyond what chance explains."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean(values) > CLEARLY * error


def deciding(lines: Sequence[Line]) -> tuple[str, str]:
    """Names of the distance that tells these lines' students apart, and of its parts by prompt.

    The perceptual one where each of them has it, else that of the layout of colours and edges.
    """
    perceptual = ("perceptual_distance", "perceptual_distances")
    counts = {len(numbers(line, perceptual[1])) for line in lines}
    known = all(number(line, perceptual[0]) is not None for line in lines)
    return perceptual if known and len(counts) == 1 and 0 not in counts else LAYOUT


def _config(values: object) -> DistillConfig:
    try:
        return DistillConfig.from_dict(values) if isinstance(values, dict) else DistillConfig()
    except (DPDMDError, OverflowError):
        return DistillConfig()


def _lines(path: Path) -> list[Line]:
    """Whole lines that hold a table with a step, by step; of a step given twice, the later one."""
    found: dict[int, Line] = {}
    for text in _head_and_tail(path).splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and (step := number(line, "step")) is not None:
            found[int(step)] = line
    return [found[step] for step in sorted(found)]


def _head_and_tail(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            size = path.stat().st_size
            if size <= HEAD_BYTES + TAIL_BYTES:
                return head + stream.read(TAIL_BYTES)
            stream.seek(size - TAIL_BYTES)
            return head + b"\n" + stream.read(TAIL_BYTES)
    except OSError:
        return b""


def _prompts(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_PROMPT_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]


def numbers(line: Line, name: str) -> list[float]:
    """What a line says of each held-out prompt; empty where any of it is no finite number."""
    values = line.get(name)
    if not isinstance(values, Iterable) or isinstance(values, str):
        return []
    found = [finite(value) for value in values]
    return [] if None in found else [value for value in found if value is not None]
