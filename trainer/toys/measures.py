"""Reads the attributes of a shapes image off its pixels, and says when there is no clean shape.

No network and nothing learnt: the border gives the background, the pixels far from it give the
colour, every pixel is then a mixture of the two, and the mixture's area and centroid fix the one
circle, square, triangle or cross that could be meant. The image is valid when one of these four,
drawn there, covers the same pixels. Mild blur and noise move neither area nor centroid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .shapes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    CROSS_ARM,
    RESOLUTION,
    SHAPES,
    TRIANGLE_ASPECT,
    coverage,
    parse_caption,
)

Array = NDArray[np.float64]

BORDER_SHARE = 0.85
"""Share of the outermost pixels that must have the background's colour."""
COLOUR_TOLERANCE = 45.0
"""Largest distance in RGB of a pixel from what it should be."""
STRAY_SHARE, STRAY_PIXELS = 0.04, 4.0
"""Pixels of a third colour that are forgiven: a share of the shape's area and a fixed number."""
MINIMUM_AREA = 30.0
OVERLAP = {"small": 0.80, "medium": 0.86, "large": 0.89}
"""Least overlap (intersection over union) with the ideal shape; edges weigh more on small ones."""
SIZE_LIMITS = {"small": (4.8, 8.8), "medium": (9.2, 13.2), "large": (13.8, 18.5)}
CENTRE_LIMIT, SIDE_LIMIT = 6.5, 8.0
AREA_OF_UNIT = {
    "circle": math.pi,
    "square": 4.0,
    "triangle": 2.0 * TRIANGLE_ASPECT,
    "cross": 8.0 * CROSS_ARM - 4.0 * CROSS_ARM**2,
}
"""Area of each shape whose half extent is 1."""


@dataclass(frozen=True)
class Measurement:
    """What one image shows. The names are empty where nothing could be read."""

    valid: bool
    shape: str = ""
    colour: str = ""
    size: str = ""
    position: str = ""
    background: str = ""
    reason: str = ""
    """Why the image is not valid; empty when it is."""


def measure(image: NDArray[np.uint8]) -> Measurement:
    """The attributes of one image, uint8 RGB of shape (64, 64, 3)."""
    if image.shape != (RESOLUTION, RESOLUTION, 3) or image.dtype != np.uint8:
        raise ValueError(f"expected uint8 (64, 64, 3), found {image.dtype} {image.shape}")
    pixels = image.astype(np.float64)
    behind, share = _border_colour(pixels)
    background = _nearest(behind, BACKGROUNDS)
    found = Measurement(False, background=background)
    if share < BORDER_SHARE or not background:
        return replace(found, reason="the border is not of one known background colour")
    far = np.linalg.norm(pixels - behind, axis=-1) > 1.3 * COLOUR_TOLERANCE
    if far.sum() < MINIMUM_AREA:
        return replace(found, reason="nothing on the background")
    front = np.median(pixels[far], axis=0)
    found = replace(found, colour=_nearest(front, COLOURS))
    if not found.colour:
        return replace(found, reason="the shape is of no known colour")
    mask, stray = _mixture(pixels, behind, front)
    area = float(mask.sum())
    if stray > STRAY_PIXELS + STRAY_SHARE * area:
        return replace(found, reason="a third colour is in the image")
    return _read_shape(mask, area, found)


def adherence(caption: str, measurement: Measurement) -> bool:
    """Whether the image is valid and shows everything that the caption says."""
    said = parse_caption(caption)
    return measurement.valid and all(getattr(measurement, k) == v for k, v in said.items())


def entropy(values: Iterable[str], attribute: str) -> float:
    """Entropy of an attribute's values over that of an even spread: 1 is even, 0 is always one."""
    counts = np.array(list(Counter(values).values()), dtype=float)
    if counts.size == 0:
        return 0.0
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(ATTRIBUTES[attribute]))) + 0.0


def unsaid_entropy(pairs: Iterable[tuple[str, Measurement]]) -> dict[str, float]:
    """Normalised entropy of each attribute over the valid images whose captions leave it open.

    Args:
        pairs: captions with the measurements of images made for them.
    """
    values: dict[str, list[str]] = {name: [] for name in ATTRIBUTES}
    for caption, measurement in pairs:
        said: Mapping[str, str] = parse_caption(caption)
        for name in ATTRIBUTES:
            if measurement.valid and name not in said:
                values[name].append(getattr(measurement, name))
    return {name: entropy(found, name) for name, found in values.items()}


def _border_colour(pixels: Array) -> tuple[Array, float]:
    """Median colour of the outermost pixels, and the share of them that has it."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    colour = np.median(border, axis=0)
    close = np.linalg.norm(border - colour, axis=-1) < COLOUR_TOLERANCE
    return colour, float(close.mean())


def _nearest(colour: Array, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """Name of the palette's nearest colour; empty when it is far, or two are about as near."""
    names = list(palette)
    distance = np.linalg.norm(np.array([palette[n] for n in names], dtype=float) - colour, axis=-1)
    first, second = np.argsort(distance)[:2]
    clear = distance[first] < COLOUR_TOLERANCE and distance[second] > 1.3 * distance[first]
    return names[first] if clear else ""


def _mixture(pixels: Array, behind: Array, front: Array) -> tuple[Array, float]:
    """Share of the front colour in each pixel (H, W), and how many pixels are no mixture at all."""
    toward = front - behind
    share = np.clip((pixels - behind) @ toward / (toward @ toward), 0.0, 1.0)
    rest = np.linalg.norm(pixels - behind - share[..., None] * toward, axis=-1)
    return _harden(share), float((rest > COLOUR_TOLERANCE).sum())


def _harden(share: Array) -> Array:
    """Pushes shares near 0 and 1 onto them, so that faint noise has no area; edges keep theirs."""
    return np.clip((share - 0.25) * 2.0, 0.0, 1.0)


def _read_shape(mask: Array, area: float, found: Measurement) -> Measurement:
    """Adds shape, size and position to what was found, or the reason why they cannot be read."""
    if area < MINIMUM_AREA:
        return replace(found, reason="nothing on the background")
    axis = np.arange(RESOLUTION) + 0.5
    x = float(mask.sum(axis=0) @ axis / area)
    y = float(mask.sum(axis=1) @ axis / area)
    fits = []
    for shape in SHAPES:
        half = math.sqrt(area / AREA_OF_UNIT[shape])
        middle = y - TRIANGLE_ASPECT / 3 * half if shape == "triangle" else y
        fits.append((_overlap(mask, shape, x, middle, half), shape, middle, half))
    overlap, shape, middle, half = max(fits)
    size = _class_of(half, SIZE_LIMITS)
    position = _position(x - RESOLUTION / 2, middle - RESOLUTION / 2)
    found = replace(found, shape=shape, size=size, position=position)
    if overlap < OVERLAP.get(size, OVERLAP["medium"]):
        return replace(found, reason=f"no clean shape (best overlap {overlap:.2f})")
    if not _is_connected(mask > 0.5):
        return replace(found, reason="the shape is in pieces")
    if not size:
        return replace(found, reason=f"between two sizes (half extent {half:.1f})")
    if not position:
        return replace(found, reason="between two positions")
    return replace(found, valid=True)


def _overlap(mask: Array, shape: str, x: float, y: float, half: float) -> float:
    """Soft intersection over union of the mask and the ideal shape."""
    drawn = coverage(shape, np.array([x]), np.array([y]), np.array([half]))[0]
    drawn = _harden(drawn)
    return float(np.minimum(mask, drawn).sum() / np.maximum(mask, drawn).sum())


def _class_of(value: float, limits: Mapping[str, tuple[float, float]]) -> str:
    return next((name for name, (low, high) in limits.items() if low <= value <= high), "")


def _position(right: float, down: float) -> str:
    """Name of the place, from the offset of the shape's middle from the image's."""
    major, minor = max(abs(right), abs(down)), min(abs(right), abs(down))
    if major <= CENTRE_LIMIT:
        return "centre"
    if major < SIDE_LIMIT or minor > CENTRE_LIMIT:
        return ""
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def _is_connected(mask: NDArray[np.bool_]) -> bool:
    """Whether all but a pixel or two hang together (eight neighbours)."""
    grown = np.zeros_like(mask)
    start = np.argmax(mask.sum(axis=1))
    grown[start, np.argmax(mask[start])] = True
    count = 0
    while count != (count := int(grown.sum())):
        for _ in range(4):
            wide = grown.copy()
            wide[1:] |= grown[:-1]
            wide[:-1] |= grown[1:]
            grown = wide.copy()
            grown[:, 1:] |= wide[:, :-1]
            grown[:, :-1] |= wide[:, 1:]
            grown &= mask
    return count >= mask.sum() - 2
