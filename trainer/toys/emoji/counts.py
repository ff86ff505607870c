"""What images of the emoji world are worth, by the judge, as measures of an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ...evaluation.measures import MeasureSet, Rows
from ...evaluation.perception import colours
from .captions import world
from .judging import Verdict, judge

OPEN = 10
"""Names that must be right for a prompt, for diversity to be counted on it."""


def emoji_measures() -> MeasureSet:
    """Valid samples, prompt adherence, diversity among right samples, drift from the teacher."""
    labels = {
        "valid": (
            "Valid samples",
            "Share in which the judge, a network fitted on real pictures alone, sees a thing.",
        ),
        "adherence": (
            "As asked",
            "Share that show what the prompt asks for; of an open prompt, any of its right things.",
        ),
        "diversity": (
            "Distinct samples",
            "1 / share of pairs of seeds that show the same thing in the same style, among right "
            "samples of prompts that name a class; 1 where fewer than half are right.",
        ),
        "style": ("Style as asked", "Share of valid samples in the style that the prompt says."),
        "saturation": (
            "Saturation",
            "Against the teacher's of the same prompts and seeds; 1 is equal.",
        ),
        "brightness": ("Brightness", "Against the teacher's; 1 is equal."),
        "contrast": ("Contrast", "Against the teacher's; 1 is equal."),
    }
    units: dict[str, str] = dict.fromkeys(("diversity", "saturation", "brightness", "contrast"), "")
    return MeasureSet((count_emoji, drift), labels, units)


def count_emoji(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
    """The judge's counts: valid, adherence, style, and diversity over the open prompts."""
    here, verdicts = world(), [judge().verdicts(np.stack(row)) for row in rows]
    said = [here.parse(prompt) for prompt in prompts]
    answers = [here.answers(prompt) for prompt in prompts]
    right = [
        [verdict.name in wanted for verdict in row]
        for wanted, row in zip(answers, verdicts, strict=True)
    ]
    numbers = {
        "valid": _mean(bool(v.name) for row in verdicts for v in row),
        "adherence": _mean(hit for row in right for hit in row),
    }
    opened = [
        distinct(row, wanted)
        for wanted, row in zip(answers, verdicts, strict=True)
        if len(wanted) >= OPEN
    ]
    if opened:
        numbers["diversity"] = _mean(opened)
    styled = [
        verdict.style == each.style
        for each, row in zip(said, verdicts, strict=True)
        for verdict in row
        if each.style and verdict.name
    ]
    if styled:
        numbers["style"] = _mean(styled)
    return numbers


def distinct(verdicts: Sequence[Verdict], wanted: frozenset[str]) -> float:
    """How many (name, style) the seeds of one prompt are spread over, as if evenly.

    1 / share of equal pairs (the inverse Simpson index), among valid and right samples; as many as
    there are samples at most. 1 where fewer than half of the samples are right.
    """
    good = [(v.name, v.style) for v in verdicts if v.name in wanted]
    if len(good) < max(2, len(verdicts) / 2):
        return 1.0
    equal = _mean(a == b for a, b in itertools.combinations(good, 2))
    return 1.0 / max(equal, 1.0 / len(good))


def drift(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
    """Mean saturation, brightness and contrast as shares of the teacher's."""
    ours, theirs = (
        np.mean([colours(image) for row in some for image in row], axis=0)
        for some in (rows, teacher)
    )
    names = ("saturation", "brightness", "contrast")
    shares = ours / np.maximum(theirs, 1e-6)
    return dict(zip(names, map(float, shares), strict=True))


def _mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
