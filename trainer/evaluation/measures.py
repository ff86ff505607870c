"""What a set of pictures is worth: diversity, distance from the teacher, exact counts on shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.images.diversity import sample_diversity
from ..toys.measures import Measurement, adherence, measure, unsaid_entropy
from ..toys.shapes import ATTRIBUTES, parse_caption
from .features import PictureFeatures

Rows = Sequence[Sequence[np.ndarray]]
"""Pictures by [prompt][seed], uint8 (H, W, 3)."""
Measure = Callable[[Sequence[str], Rows, Rows], dict[str, float]]
"""(prompts, pictures, the teacher's pictures of the same prompts and seeds) -> numbers by name."""


@dataclass(frozen=True)
class MeasureSet:
    """Measures with what a report has to say of them.

    Attributes:
        measures: called one after the other; their numbers are put together.
        labels: name -> (short label, plain words).
        units: name -> unit; "share", the default, is shown in percent.
    """

    measures: tuple[Measure, ...]
    labels: dict[str, tuple[str, str]]
    units: dict[str, str]

    def __call__(self, prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
        """All numbers of one arm."""
        numbers: dict[str, float] = {}
        for each in self.measures:
            numbers |= each(prompts, rows, teacher)
        return numbers

    def __add__(self, other: MeasureSet) -> MeasureSet:
        return MeasureSet(
            self.measures + other.measures, self.labels | other.labels, self.units | other.units
        )


def energy_distance(ours: Tensor, theirs: Tensor) -> float:
    """How far two samples of R unit vectors each, shape (R, D), are apart as distributions.

    2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013), 0 in the mean where both come from
    one distribution. Picture i of either side has the same start noise, so pairs (i, i) are left
    out of all three means.
    """

    def mean_apart(a: Tensor, b: Tensor) -> Tensor:
        apart = (2 - 2 * (a.double() @ b.double().T)).clamp_min(0).sqrt()
        return (apart.sum() - apart.trace()) / (len(a) * (len(a) - 1))

    return float(2 * mean_apart(ours, theirs) - mean_apart(ours, ours) - mean_apart(theirs, theirs))


def feature_measures(features: PictureFeatures) -> MeasureSet:
    """Diversity and distance from the teacher in these features, and a CLIP score where it has one.

    All are means over prompts.
    """

    def measured(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
        found = [features.of(row) for row in rows]
        wanted = found if rows is teacher else [features.of(row) for row in teacher]
        numbers = {
            "sample_diversity": _mean(map(sample_diversity, found)),
            "teacher_distance": _mean(
                energy_distance(a, b) for a, b in zip(found, wanted, strict=True)
            ),
        }
        if features.prompt_score is not None:
            pairs = zip(prompts, rows, strict=True)
            numbers["clip_score"] = _mean(features.prompt_score(*pair) for pair in pairs)
        return numbers

    labels = {
        "sample_diversity": (
            "Seeds differ",
            "How much pictures of one prompt differ from seed to seed: 1 - mean cosine of all "
            f"pairs (the paper's Eq. 9). Feature: {features.title}.",
        ),
        "teacher_distance": (
            "Distance from teacher",
            "Energy distance between these pictures and the teacher's of the same prompts, in the "
            "same feature; 0 where they cannot be told apart.",
        ),
    }
    if features.prompt_score is not None:
        labels["clip_score"] = ("CLIP score", "Mean cosine between pictures and their prompt.")
    units = {"sample_diversity": "", "teacher_distance": "", "clip_score": ""}
    return MeasureSet((measured,), labels, units)


def _mean(values: Iterable[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).mean())


def shapes_measures() -> MeasureSet:
    """Exact counts for the embedded teachers: clean pictures, prompt adherence, diversity."""
    labels = {
        "valid": ("Clean pictures", "Share of pictures with one clean shape on its background."),
        "adherence": (
            "Follows prompt",
            "Share that are clean and show everything the prompt says.",
        ),
        "diversity": (
            "Diversity",
            "How often two seeds of one prompt differ in what it leaves open: mean over the unsaid "
            "attributes, clean pictures only; 100% is what even draws give.",
        ),
    }
    return MeasureSet((count_shapes,), labels, {})


def count_shapes(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
    """Shares of clean and of said pictures, and how much each unsaid attribute varies.

    "diversity_<attribute>" is within one prompt (`seeds_apart`), "entropy_<attribute>" over all.
    """
    found = [[measure(picture) for picture in row] for row in rows]
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
    """By attribute: how often two clean pictures of one prompt that leaves it open differ in it.

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
