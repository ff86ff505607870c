"""The report as one HTML page: what templates/report.html shows, worked out from the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .charts import chart, known_curves
from .data import ReportData
from .images import embedded, embedded_side
from .table import columns, shown, verdict
from .templating import html_templates

PLAIN_HOST_FACT = "Sample it with"
CHECKPOINT_FACT = "Checkpoint"
# Image rows that are unfolded at first, so that the table below stays within reach.
UNFOLDED_ROWS = 12
# More arms than these wrap, three abreast.
MOST_ARMS_ABREAST = 4
PREVIEWS = 8


def page(data: ReportData) -> str:
    """The whole page."""
    labelled = [key for key in data.measure_labels if any(key in a.measures for a in data.arms)]
    others = list(dict.fromkeys(k for a in data.arms for k in a.measures if k not in labelled))
    own = data.focus % len(data.arms)
    told = {PLAIN_HOST_FACT} if data.lora else set()
    template = html_templates(Path(__file__).parent / "templates").get_template("report.html")
    text = template.render(
        data=data,
        own=own,
        others=[row for row in range(len(data.arms)) if row != own],
        verdict=verdict(data),
        columns=columns(data, labelled),
        more_columns=columns(data, others) if others else [],
        terms=[data.measure_labels[key] for key in labelled],
        layout=_layout(data),
        charts=[chart(data.metrics, curve) for curve in known_curves(data.metrics)],
        previews=_picked_previews(data.previews),
        checkpoint=data.facts.get(CHECKPOINT_FACT, ""),
        plain_host=data.facts.get(PLAIN_HOST_FACT, ""),
        facts=[(name, text) for name, text in data.facts.items() if name not in told],
        embedded=embedded,
        shown=shown,
        exact=json.dumps,
        is_finite=math.isfinite,
    )
    return text.lstrip()  # of the lines that the macros leave


@dataclass(frozen=True)
class _Layout:
    """How the seed grids are laid out.

    Attributes:
        side: longest side of an embedded image, in pixels.
        few: whether all arms fit abreast.
        columns: seeds side by side in one block, so that blocks side by side stay large enough.
        unfolded: prompts that are shown at once; the others are folded.
        seeds: a sentence that names the seeds.
    """

    side: int
    few: bool
    columns: int
    unfolded: int
    seeds: str


def _layout(data: ReportData) -> _Layout:
    arms, prompts, seeds = len(data.arms), len(data.prompts), len(data.seeds)
    few = arms <= MOST_ARMS_ABREAST
    most = 12 // (arms if few else 3)
    columns = math.ceil(seeds / math.ceil(seeds / most))
    unfolded = max(1, UNFOLDED_ROWS // math.ceil(seeds / columns))
    return _Layout(
        side=embedded_side(arms * prompts * seeds),
        few=few,
        columns=columns,
        unfolded=prompts if prompts <= unfolded + 1 else unfolded,
        seeds=_seed_names(data.seeds),
    )


def _seed_names(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"Seeds {seeds[0]} to {seeds[-1]}."
    return f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."


def _picked_previews(previews: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """At most `PREVIEWS` of them, evenly spread, the first and the last among them."""
    count = len(previews)
    wanted = min(count, PREVIEWS)
    picked = sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)})
    return [previews[index] for index in picked]
