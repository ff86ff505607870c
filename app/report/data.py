"""What a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of making images: the teacher, the teacher at few steps, a student."""

    name: str
    note: str
    evaluations: int
    """Network evaluations per image; a guided step costs two."""
    seconds_per_image: float
    images: list[list[np.ndarray]]
    """[prompt][seed], uint8 (H, W, 3)."""
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows. The teacher is the first arm; the summary is about `focus`."""

    title: str
    subtitle: str
    facts: dict[str, str]
    """Shown as they are; `page.PLAIN_HOST_FACT` goes to "How to use this LoRA"."""
    prompts: list[str]
    seeds: list[int]
    arms: list[Arm]
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    measure_labels: dict[str, tuple[str, str]]
    """Key -> (short label, plain words). Measures without a label go to a folded table."""
    measure_units: dict[str, str] = field(default_factory=dict)
    """Key -> unit; "share", the default, is shown in percent."""
    previews: Sequence[tuple[int, np.ndarray]] = ()
    """(step, sheet) over training."""
    notes: Sequence[str] = ()
    lora: str = ""
    focus: int = -1
    """Index of the arm that the first screen speaks of."""

    def __post_init__(self) -> None:
        if not self.arms or not self.prompts or not self.seeds:
            raise ValueError("a report needs at least one arm, one prompt and one seed")
        for arm in self.arms:
            if [len(row) for row in arm.images] != [len(self.seeds)] * len(self.prompts):
                raise ValueError(
                    f"{arm.name}: images must be {len(self.prompts)} prompts x "
                    f"{len(self.seeds)} seeds, found rows of {[len(r) for r in arm.images]}"
                )
