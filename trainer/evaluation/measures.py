"""What a set of images is worth: diversity, distance from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.images.diversity import sample_diversity
from .features import ImageFeatures

Rows = Sequence[Sequence[np.ndarray]]
"""Images by [prompt][seed], uint8 (H, W, 3)."""
Measure = Callable[[Sequence[str], Rows, Rows], dict[str, float]]
"""(prompts, images, the teacher's images of the same prompts and seeds) -> numbers by name."""


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


@dataclass(frozen=True)
class FeatureNames:
    """Under which names the numbers in one feature are kept, and how their labels end."""

    diversity: str
    distance: str
    ending: str = ""


LAYOUT_NAMES = FeatureNames("sample_diversity", "teacher_distance")
EFFICIENTNET_NAMES = FeatureNames(
    "efficientnet_diversity", "efficientnet_distance", " (EfficientNet)"
)


def energy_distance(ours: Tensor, theirs: Tensor) -> float:
    """How far two samples of R unit vectors each, shape (R, D), are apart as distributions.

    2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013), 0 in the mean where both come from
    one distribution. Image i of either side has the same initial noise, so pairs (i, i) are left
    out of all three means.
    """

    def mean_apart(a: Tensor, b: Tensor) -> Tensor:
        apart = (2 - 2 * (a.double() @ b.double().T)).clamp_min(0).sqrt()
        return (apart.sum() - apart.trace()) / (len(a) * (len(a) - 1))

    return float(2 * mean_apart(ours, theirs) - mean_apart(ours, ours) - mean_apart(theirs, theirs))


def feature_measures(features: ImageFeatures, names: FeatureNames = LAYOUT_NAMES) -> MeasureSet:
    """Diversity and distance from the teacher in these features, and a CLIP score where it has one.

    All are means over prompts.

    Args:
        features: how images become vectors.
        names: what the two numbers are called.
    """

    kept: list[tuple[Rows, list[Tensor]]] = []

    def vectors_of(teacher: Rows) -> list[Tensor]:
        """The teacher's, which every arm is compared with, once."""
        if not kept or kept[0][0] is not teacher:
            kept[:] = [(teacher, [features.of(row) for row in teacher])]
        return kept[0][1]

    def measured(prompts: Sequence[str], rows: Rows, teacher: Rows) -> dict[str, float]:
        wanted = vectors_of(teacher)
        found = wanted if rows is teacher else [features.of(row) for row in rows]
        numbers = {
            names.diversity: _mean(map(sample_diversity, found)),
            names.distance: _mean(
                energy_distance(a, b) for a, b in zip(found, wanted, strict=True)
            ),
        }
        if features.prompt_score is not None:
            pairs = zip(prompts, rows, strict=True)
            numbers["clip_score"] = _mean(features.prompt_score(*pair) for pair in pairs)
        return numbers

    labels = {
        names.diversity: (
            f"Seeds differ{names.ending}",
            "How much images of one prompt differ from seed to seed: 1 - mean cosine of all "
            f"pairs (the paper's Eq. 9). Feature: {features.title}.",
        ),
        names.distance: (
            f"Distance from teacher{names.ending}",
            "Energy distance between these images and the teacher's of the same prompts, in the "
            "same feature; 0 where they cannot be told apart.",
        ),
    }
    if features.prompt_score is not None:
        labels["clip_score"] = ("CLIP score", "Mean cosine between images and their prompt.")
    units = {names.diversity: "", names.distance: "", "clip_score": ""}
    return MeasureSet((measured,), labels, units)


def _mean(values: Iterable[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).mean())
