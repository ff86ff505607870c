"""What images of shapes are worth, by exact counts, as measures of an evaluation."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from ..evaluation.measures import MeasureSet, Rows
from .measures import Measurement, adherence, measure, unsaid_entropy
from .shapes import ATTRIBUTES, RESOLUTION, parse_caption

log = logging.getLogger("dpdmd_studio.evaluation")


def shapes_measures() -> MeasureSet:
    """Exact counts for the embedded teachers: valid samples, prompt adherence, diversity."""
    labels = {
        "valid": ("Valid samples", "Share of samples with one clean shape on its background."),
        "adherence": (
            "Follows prompt",
            "Share that are valid and show everything the prompt says.",
        ),
        "diversity": (
            "Diversity",
            "How often two seeds of one prompt differ in what it leaves open: mean over the unsaid "
            "attributes, valid samples only; 100% is what even draws give.",
        ),
    }
    return MeasureSet((count_shapes,), labels, {})


def count_shapes(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
    """Shares of valid and of adherent samples, and how much each unsaid attribute varies.

    "diversity_<attribute>" is within one prompt (`seeds_apart`), "entropy_<attribute>" over all.
    Shapes are read from images of one size; of others nothing is counted, and the log says so.
    """
    height, width, _ = rows[0][0].shape
    if (height, width) != (RESOLUTION, RESOLUTION):
        if rows is teacher:  # once, for the first arm
            log.info(
                "Shapes are counted in images of %d x %d alone, and these are %d x %d: the report "
                "has neither valid samples nor prompt adherence.",
                RESOLUTION,
                RESOLUTION,
                width,
                height,
            )
        return {}
    found = [[measure(image) for image in row] for row in rows]
    pairs = [(p, seen) for p, row in zip(prompts, found, strict=True) for seen in row]
    named = {f"diversity_{name}": value for name, value in seeds_apart(prompts, found).items()}
    entropies = {f"entropy_{name}": value for name, value in unsaid_entropy(pairs).items()}
    return {
        "valid": sum(seen.valid for _, seen in pairs) / len(pairs),
        "adherence": sum(adherence(prompt, seen) for prompt, seen in pairs) / len(pairs),
        "diversity": sum(named.values()) / max(1, len(named)),
        **named,
        **entropies,
    }


def seeds_apart(prompts: Sequence[str], found: Sequence[Sequence[Measurement]]) -> dict[str, float]:
    """By attribute: how often two valid samples of one prompt that leaves it open differ in it.

    As a share of how often even draws differ, 1 - 1 / classes (Gini and Simpson); unbiased for any
    number of seeds, and blind to what other prompts show. Mean over pairs of all prompts.
    """
    apart: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for prompt, row in zip(prompts, found, strict=True):
        open_names = set(ATTRIBUTES) - set(parse_caption(prompt))
        for one, other in itertools.combinations([seen for seen in row if seen.valid], 2):
            for name in open_names:
                apart[name].append(getattr(one, name) != getattr(other, name))
    return {
        name: sum(values) / len(values) / (1 - 1 / len(ATTRIBUTES[name]))
        for name, values in apart.items()
        if values
    }
