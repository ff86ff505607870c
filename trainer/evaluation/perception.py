"""How a student's images look beside the teacher's of the same prompts: what a run chooses by.

Quality is judged in features of a network that knows photographs, which see blur, noise and lost
variety. Brightness moves those features as much as a plain blur does, though it matters less to
people and is mended by a slider: so images are brought to the teacher's brightness first, and
their drift is told apart from their quality (benchmarks/results/altered_copies.md).
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .features import ImageFeatures, perceptual_features
from .measures import Rows, energy_distance

MOST_GAIN = 1.25
"""Beyond this, brightness is no small matter: what is left of it counts as distance."""
FLOOR = 0.02
"""Added to both sides of a share: of next to no colour, twice as much is still none."""


class Perception:
    """The teacher's images as those of others are judged by."""

    def __init__(self, teacher: Rows) -> None:
        self._colours = _colours(teacher)
        self._features = perceptual_features()
        self._vectors = [self._features.of(row) for row in teacher] if self._features else []

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Drift by prompt, and where the network is installed the distance, whole and by prompt."""
        if self._features is None:
            return self.drift(rows)
        pairs = zip(self.vectors(self._features, rows), self._vectors, strict=True)
        apart = [energy_distance(*pair) for pair in pairs]
        distance = {"perceptual_distance": mean(apart), "perceptual_distances": apart}
        return distance | self.drift(rows)

    def drift(self, rows: Rows) -> dict[str, list[float]]:
        """Mean brightness and saturation by prompt, as shares of the teacher's."""
        saturation, brightness = ((_colours(rows) + FLOOR) / (self._colours + FLOOR)).T[:2]
        return {"brightness": brightness.tolist(), "saturation": saturation.tolist()}

    def vectors(self, features: ImageFeatures, rows: Rows) -> list[Tensor]:
        """What `features` see of each prompt's images at the teacher's brightness."""
        level = _colours(rows)[:, 1].mean()
        gain = self._colours[:, 1].mean() / max(level, 1e-6)
        gain = float(np.clip(gain, 1 / MOST_GAIN, MOST_GAIN))
        return [features.of([exposed(image, gain) for image in row]) for row in rows]


def exposed(image: NDArray[np.uint8], gain: float) -> NDArray[np.uint8]:
    """The uint8 image with its values times `gain`."""
    return (image * np.float32(gain)).clip(0, 255).round().astype(np.uint8)


def colours(image: np.ndarray) -> tuple[float, float, float]:
    """Mean saturation (largest less least channel) and brightness, and its deviation, of 0 to 1."""
    pixels = image.astype(np.float32) / 255
    grey = pixels.mean(axis=-1)
    saturation = float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean())
    return saturation, float(grey.mean()), float(grey.std())


def _colours(rows: Rows) -> NDArray[np.float64]:
    """The means of `colours` over each prompt's images, shape (P, 3)."""
    return np.array([np.mean([colours(image) for image in row], axis=0) for row in rows])
