"""How much images of one prompt differ from seed to seed, in a feature that needs no network.

Only numpy, torch and PIL, so that hosts measure what the trainer's reports measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LAYOUT_TITLE = "layout of colours and edges (built in)"
LAYOUT_SIDE, COLOUR_CELLS, EDGE_CELLS, ORIENTATIONS = 64, 8, 4, 8


def sample_diversity(features: Tensor) -> float:
    """1 - mean cosine over all pairs of R unit vectors, shape (R, D) (arXiv:2602.03139, Eq. 9)."""
    count = len(features)
    if count < 2:
        raise ValueError(f"diversity needs at least 2 images, found {count}")
    cosines = features.double() @ features.double().T
    return 1.0 - float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def layout_vectors(images: Sequence[np.ndarray]) -> Tensor:
    """Where which colours and edges are: unit vectors, float32, shape (N, 320).

    Half of the cosine is that of the mean colours of 8 x 8 cells less mid grey, half that of the
    gradients of 4 x 4 cells, sorted into 8 orientations and weighed by their strength (as in
    histograms of oriented gradients, Dalal and Triggs 2005).

    Args:
        images: uint8 arrays of shape (H, W, 3).
    """
    return torch.stack([torch.from_numpy(_layout_of(image)) for image in images]).float()


def _layout_of(image: np.ndarray) -> np.ndarray:
    size = (LAYOUT_SIDE, LAYOUT_SIDE)
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) / 255.0
    colours = _cells(small, COLOUR_CELLS).mean(axis=(1, 3)) - 0.5
    down, right = np.gradient(small @ [0.299, 0.587, 0.114])
    strength = np.hypot(down, right)
    turn = np.floor(np.arctan2(down, right) % np.pi / np.pi * ORIENTATIONS) % ORIENTATIONS
    sorted_edges = strength[..., None] * (turn[..., None] == np.arange(ORIENTATIONS))
    edges = _cells(sorted_edges, EDGE_CELLS).sum(axis=(1, 3))
    return np.concatenate([_unit(colours.ravel()), _unit(edges.ravel())]) / np.sqrt(2)


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    side = len(values) // count
    return values.reshape(count, side, count, side, -1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
