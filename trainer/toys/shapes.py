"""Images of one plain shape, and captions that tell a part of what is in them.

This is the whole world of the embedded teacher. An image is decided by five named attributes and
by continuous jitter inside each of them (exact place, exact extent, tone of both colours); the
ranges of neighbouring classes are far apart, so that `shapes_measure` can read the classes back
without doubt. A caption says some of the attributes; what it leaves unsaid is free, and that is
what makes diversity countable. NumPy only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 64

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "right", "top", "bottom", "centre")
COLOURS = {
    "red": (215, 35, 45),
    "orange": (245, 130, 25),
    "yellow": (245, 215, 40),
    "green": (30, 150, 60),
    "blue": (35, 75, 215),
    "purple": (150, 50, 180),
}
BACKGROUNDS = {
    "white": (240, 240, 240),
    "grey": (150, 150, 150),
    "black": (20, 20, 20),
    "pink": (250, 180, 200),
    "turquoise": (130, 215, 215),
    "brown": (110, 75, 50),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "position": POSITIONS,
    "background": tuple(BACKGROUNDS),
}

CROSS_ARM = 0.36
"""Half width of a cross's arm as a share of its half extent."""
TRIANGLE_ASPECT = 0.9
"""Height of a triangle's bounding box over its width."""
PLACE_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}


@dataclass(frozen=True)
class Scene:
    """What is in one image: the five attributes by name."""

    shape: str
    colour: str
    size: str
    position: str
    background: str


def coverage(
    shape: str,
    centre_x: NDArray[np.float64],
    centre_y: NDArray[np.float64],
    half: NDArray[np.float64],
    resolution: int = RESOLUTION,
) -> NDArray[np.float64]:
    """Share of each pixel that the shape covers, shape (N, H, W), from its signed distance.

    Args:
        shape: one of `SHAPES`.
        centre_x: middle of the bounding box, in pixels from the left edge, shape (N,).
        centre_y: the same from the upper edge, shape (N,).
        half: half of the longer side of the bounding box, shape (N,).
        resolution: height and width of the image.
    """
    axis = np.arange(resolution) + 0.5
    x = np.abs(axis[None, None, :] - centre_x[:, None, None])
    y = axis[None, :, None] - centre_y[:, None, None]
    r = half[:, None, None]
    if shape == "circle":
        distance = np.hypot(x, y) - r
    elif shape == "square":
        distance = np.maximum(x, np.abs(y)) - r
    elif shape == "cross":
        long, wide = np.maximum(x, np.abs(y)), np.minimum(x, np.abs(y))
        distance = np.maximum(long - r, wide - CROSS_ARM * r)
    elif shape == "triangle":
        base = TRIANGLE_ASPECT * r
        slope = 2.0 * TRIANGLE_ASPECT
        side = (slope * x - y - base) / np.hypot(slope, 1.0)
        distance = np.maximum(side, y - base)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return np.clip(0.5 - distance, 0.0, 1.0)


def caption(scene: Scene, said: Sequence[str], wording: int = 0) -> str:
    """A caption of the scene that tells the attributes in `said` and no other.

    Args:
        scene: what is in the image.
        said: names out of `ATTRIBUTES`.
        wording: 0 ends in ", white background", 1 in "on a white background".
    """
    words = [scene.size] if "size" in said else []
    words += [scene.colour] if "colour" in said else []
    words.append(scene.shape if "shape" in said else "shape")
    article = "an" if words[0][0] in "aeiou" else "a"
    text = " ".join([article, *words])
    if "position" in said:
        text += " " + PLACE_WORDS[scene.position]
    if "background" in said:
        text += (
            f" on a {scene.background} background"
            if wording
            else (f", {scene.background} background")
        )
    return text


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a caption says, by name; what it leaves open is missing."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {
        name: value for name, values in ATTRIBUTES.items() for value in values if value in words
    }


def is_held_out(said: dict[str, str]) -> bool:
    """Whether a caption with these attributes is kept for evaluation.

    Of all captions that say three attributes or more, every fifth is: the one whose class numbers
    add up to a multiple of five. Captions that say less are too few to be spared.
    """
    if len(said) < 3:
        return False
    return sum(ATTRIBUTES[name].index(value) for name, value in said.items()) % 5 == 0


def all_captions(held_out: bool) -> list[str]:
    """Every caption of the training side or of the held-out side, in a fixed order."""
    found = []
    for count in range(len(ATTRIBUTES) + 1):
        for said in itertools.combinations(ATTRIBUTES, count):
            for values in itertools.product(*(ATTRIBUTES[name] for name in said)):
                attributes = dict(zip(said, values, strict=True))
                if is_held_out(attributes) == held_out:
                    scene = Scene(**{name: attributes.get(name, "") for name in ATTRIBUTES})
                    found.append(caption(scene, said))
    return found


def caption_sample(held_out: bool, count: int, seed: int) -> list[str]:
    """`count` captions of one side, mixed so that each number of said attributes is as frequent."""
    generator = np.random.default_rng(seed)
    groups: dict[int, list[str]] = {}
    for text in all_captions(held_out):
        groups.setdefault(len(parse_caption(text)), []).append(text)
    for texts in groups.values():
        generator.shuffle(texts)
    sizes = sorted(groups)
    return [
        groups[sizes[i % len(sizes)]][i // len(sizes) % len(groups[sizes[i % len(sizes)]])]
        for i in range(count)
    ]
