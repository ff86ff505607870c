"""Random scenes and captions that the shapes teachers learn from, and images of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from dpdmd_studio.trainer.toys import measures as shapes_measure
from dpdmd_studio.trainer.toys import shapes
from numpy.typing import NDArray

DRAWING_VERSION = 1
HALF_EXTENTS = {"small": (6.0, 8.0), "medium": (10.0, 12.0), "large": (15.0, 17.0)}
"""Half of the longer side of the bounding box, in pixels of a 64-pixel image."""
CENTRE_JITTER = 3.0
"""Largest offset from the middle, in pixels: of both axes in the centre, else of the minor one."""
SIDE_OFFSET = (11.5, 17.0)
"""Offset from the middle along the axis that names the side; clipped so that nothing is cut off."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}


def random_scenes(count: int, generator: np.random.Generator) -> list[shapes.Scene]:
    """`count` scenes, every attribute drawn evenly and on its own."""
    columns = [generator.integers(len(values), size=count) for values in shapes.ATTRIBUTES.values()]
    names = list(shapes.ATTRIBUTES.values())
    return [
        shapes.Scene(*(values[i] for values, i in zip(names, row, strict=True)))
        for row in zip(*columns, strict=True)
    ]


@dataclass(frozen=True)
class Plans:
    """Scenes with their jitter settled: everything that an image is made of, N rows each."""

    shape: list[str]
    x: NDArray[np.float64]
    """Middle of the bounding box from the left edge, in pixels, shape (N,)."""
    y: NDArray[np.float64]
    """The same from the upper edge."""
    half: NDArray[np.float64]
    """Half of the longer side of the bounding box, in pixels, shape (N,)."""
    front: NDArray[np.float64]
    """Colour of the shape, 0..255, shape (N, 3)."""
    behind: NDArray[np.float64]
    """Colour of the background, 0..255, shape (N, 3)."""


def plan(scenes: Sequence[shapes.Scene], generator: np.random.Generator) -> Plans:
    """The scenes with fresh jitter inside each of their classes."""
    half = np.array([generator.uniform(*HALF_EXTENTS[s.size]) for s in scenes])
    x, y = _places(scenes, half, generator)
    front = _tones([shapes.COLOURS[s.colour] for s in scenes], generator)
    behind = _tones([shapes.BACKGROUNDS[s.background] for s in scenes], generator)
    return Plans([s.shape for s in scenes], x, y, half, front, behind)


def render(plans: Plans) -> NDArray[np.uint8]:
    """The images of the plans, uint8 RGB, shape (N, 64, 64, 3)."""
    cover = np.empty((len(plans.shape), shapes.RESOLUTION, shapes.RESOLUTION, 1))
    for shape in shapes.SHAPES:
        rows = np.array([i for i, s in enumerate(plans.shape) if s == shape], dtype=int)
        found = shapes.coverage(shape, plans.x[rows], plans.y[rows], plans.half[rows])
        cover[rows] = found[..., None]
    behind = plans.behind[:, None, None, :]
    mixed = behind + cover * (plans.front[:, None, None, :] - behind)
    return np.rint(mixed).astype(np.uint8)


def _places(
    scenes: Sequence[shapes.Scene], half: NDArray[np.float64], generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres in pixels, two arrays of shape (N,)."""
    middle = shapes.RESOLUTION / 2
    jitter = generator.uniform(-CENTRE_JITTER, CENTRE_JITTER, size=(2, len(scenes)))
    low, high = SIDE_OFFSET
    reach = np.minimum(high, middle - 1.0 - half)
    offset = low + (reach - low) * generator.random(len(scenes))
    toward = np.array([DIRECTIONS[s.position] for s in scenes], dtype=float).reshape(-1, 2)
    place = [
        middle + np.where(toward[:, axis] != 0, toward[:, axis] * offset, jitter[axis])
        for axis in (0, 1)
    ]
    return place[0], place[1]


def _tones(
    colours: Sequence[tuple[int, int, int]], generator: np.random.Generator
) -> NDArray[np.float64]:
    """The colours, each a little lighter or darker and off in hue, shape (N, 3)."""
    base = np.array(colours, dtype=float).reshape(-1, 3)
    base = base + generator.uniform(-8, 8, size=(len(base), 1))
    return np.clip(base + generator.uniform(-4, 4, size=base.shape), 0, 255)


def draw(scenes: Sequence[shapes.Scene], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Images of the scenes with fresh jitter, uint8 RGB, shape (N, 64, 64, 3)."""
    return render(plan(scenes, generator))


def random_said(generator: np.random.Generator) -> tuple[str, ...]:
    """A random subset of the attributes; how many of the five is drawn evenly."""
    count = int(generator.integers(len(shapes.ATTRIBUTES) + 1))
    chosen = set(generator.permutation(list(shapes.ATTRIBUTES))[:count].tolist())
    return tuple(name for name in shapes.ATTRIBUTES if name in chosen)


def measure_all(images: Iterable[NDArray[np.uint8]]) -> list[shapes_measure.Measurement]:
    """The measurement of every image."""
    return [shapes_measure.measure(image) for image in images]


def starter_captions(count: int) -> list[str]:
    """`count` different captions to train on, as the starter prompts have them."""
    return list(dict.fromkeys(shapes.caption_sample(held_out=False, count=2 * count, seed=0)))[
        :count
    ]
