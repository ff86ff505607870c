"""The worlds of the embedded teachers: captions to train and to measure on, and exact counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError
from ...core.families import stated_settings
from ..evaluation.features import ImageFeatures, layout_features, perceptual_features
from ..evaluation.measures import EFFICIENTNET_NAMES, MeasureSet, feature_measures
from . import counts, shapes
from .emoji import captions
from .emoji.counts import emoji_measures


@dataclass(frozen=True)
class World:
    """What an embedded teacher draws.

    `captions(held_out, count, seed)` gives prompts of one side, `measures()` counts what images
    show.
    """

    captions: Callable[[bool, int, int], list[str]]
    measures: Callable[[], MeasureSet]


WORLDS = {
    "shapes": World(shapes.caption_sample, counts.shapes_measures),
    "emoji": World(captions.caption_sample, emoji_measures),
}


def world_of(checkpoint: Path) -> World | None:
    """The world of an embedded teacher; None for every other checkpoint.

    Raises:
        CheckpointError: it states a world that this version does not know, or is damaged.
    """
    stated = stated_settings(checkpoint)
    if not stated:
        return None
    if stated["world"] not in WORLDS:
        raise CheckpointError(
            f"{checkpoint.name} is a demo checkpoint of the world {stated['world']!r}, and this "
            f"version knows {' and '.join(WORLDS)}. Update DP-DMD Studio, or take the file that it "
            "ships."
        )
    return WORLDS[stated["world"]]


def measures_for(checkpoint: Path, features: ImageFeatures | None = None) -> MeasureSet:
    """A world's counts, then diversity and distance: in both built-in features, or `features`."""
    found = feature_measures(features) if features else image_measures()
    world = world_of(checkpoint)
    return world.measures() + found if world else found


def image_measures() -> MeasureSet:
    """Diversity and distance in the layout feature and, where installed, in EfficientNet's."""
    found = feature_measures(layout_features())
    perceptual = perceptual_features()
    return found + feature_measures(perceptual, EFFICIENTNET_NAMES) if perceptual else found
