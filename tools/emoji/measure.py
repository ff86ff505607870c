"""Stage `measure`: what a teacher draws, counted by the judge, with and without its guidance.

Captions are held out from students (`World.is_held_out`); names and open nouns are counted apart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np

SETTINGS = ((28, True), (28, False), (4, True), (4, False))
"""Steps, and whether they are guided."""
NAMES, OPEN_SEEDS = 1040, 64
FIRST_SEED = 5_000_000

Draw = Callable[[list[str], Sequence[int], int, bool], np.ndarray]
"""(captions, seeds, steps, guided) -> uint8 images (N, H, W, 3)."""


def name_captions(count: int, seed: int = 0, held_out: bool = True) -> list[str]:
    """Captions that name a thing, held out from students; half of them say a style."""
    from dpdmd_studio.trainer.toys import emoji

    here, source, found = emoji.world(), random.Random(f"names-{seed}"), []
    while len(found) < count:
        scene = emoji.random_scene(source)
        said = emoji.Said(
            scene.name,
            scene.style if source.random() < 0.5 else "",
            scene.background if source.random() < 0.5 else "",
        )
        if here.is_held_out(said) == held_out:
            found.append(said.caption(source.randrange(3)))
    return found


def open_captions() -> list[str]:
    """The classes and wider classes, each alone: one prompt with many right images."""
    from dpdmd_studio.trainer.toys import emoji

    return list(emoji.world().open_nouns)


def counted_names(captions: Sequence[str], images: np.ndarray) -> dict[str, float]:
    """Shares of recognised images, of right names, and of right styles where one was said."""
    from dpdmd_studio.trainer.toys import emoji
    from dpdmd_studio.trainer.toys.judge import judge

    here = emoji.world()
    pairs = list(zip(map(here.parse, captions), judge().verdicts(images), strict=True))
    right = [v.name in here.nouns[s.noun] for s, v in pairs]
    styled = [v.style == s.style for s, v in pairs if s.style and v.name]
    return {
        "valid": _mean(bool(v.name) for _, v in pairs),
        "as asked": _mean(right),
        "style": _mean(styled),
    }


def counted_open(images_of: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares, and diversity: 1 / share of pairs of seeds with the same (name, style).

    Among valid and right images of a caption; a caption with fewer than half of them is 1.
    """
    from dpdmd_studio.trainer.toys import emoji
    from dpdmd_studio.trainer.toys.judge import judge

    here, valid, right, diversities = emoji.world(), [], [], []
    for caption, images in images_of.items():
        verdicts = judge().verdicts(images)
        wanted = here.nouns[here.parse(caption).noun]
        good = [(v.name, v.style) for v in verdicts if v.name in wanted]
        valid += [bool(v.name) for v in verdicts]
        right += [v.name in wanted for v in verdicts]
        same = _mean(a == b for a, b in itertools.combinations(good, 2))
        enough = len(good) >= len(verdicts) / 2
        diversities.append(1 / max(same, 1 / (4 * len(wanted))) if enough else 1.0)
    return {"valid": _mean(valid), "right": _mean(right), "diversity": _mean(diversities)}


def table(draw: Draw, names: int = NAMES, seeds: int = OPEN_SEEDS) -> dict[str, dict]:
    """Every setting's counts, for names and for open captions."""
    captions, found = name_captions(names), {}
    for steps, guided in SETTINGS:
        images = draw(captions, range(FIRST_SEED, FIRST_SEED + names), steps, guided)
        opened = {
            caption: draw([caption] * seeds, range(FIRST_SEED, FIRST_SEED + seeds), steps, guided)
            for caption in open_captions()
        }
        title = f"{steps} steps, {'guided' if guided else 'no guidance'}"
        found[title] = {"names": counted_names(captions, images), "open": counted_open(opened)}
        print(title, found[title], flush=True)
    return found


def _mean(values) -> float:
    values = list(values)
    return round(sum(values) / max(1, len(values)), 4)
