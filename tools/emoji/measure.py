"""Stage `measure`: what a teacher draws, counted by the judge, with and without its guidance.

Captions are held out from students (`World.is_held_out`); names and open nouns are counted apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import emoji_measures
from shapes_teacher_common import LOG

SETTINGS = ((28, True), (28, False), (4, True), (4, False))
"""Steps, and whether they are guided."""
NAMES, OPEN_SEEDS = 1040, 64
FIRST_SEED = 5_000_000
AT_A_TIME = 128

Draw = Callable[[list[str], Sequence[int], int, bool], np.ndarray]
"""(captions, seeds, steps, guided) -> uint8 images (N, H, W, 3)."""


def name_captions(count: int, seed: int = 0, held_out: bool = True) -> list[str]:
    """Captions that name a thing, held out from students; half of them say a style."""
    here, source, found = captions.world(), random.Random(f"names-{seed}"), []
    while len(found) < count:
        scene = captions.random_scene(source)
        said = captions.Said(
            scene.name,
            scene.style if source.random() < 0.5 else "",
            scene.background if source.random() < 0.5 else "",
        )
        if here.is_held_out(said) == held_out:
            found.append(said.caption(source.randrange(3)))
    return found


def open_captions() -> list[str]:
    """The classes and wider classes, each alone: one prompt with many right images."""
    return list(captions.world().open_nouns)


def table(draw: Draw, names: int = NAMES, seeds: int = OPEN_SEEDS) -> dict[str, dict]:
    """Every setting's counts, for names and for open captions; drift is from the first setting."""
    asked, opened, measures = name_captions(names), open_captions(), emoji_measures()
    found, first = {}, {}
    for steps, guided in SETTINGS:
        drawn = {
            "names": (
                asked,
                draw(asked, range(FIRST_SEED, FIRST_SEED + names), steps, guided)[:, None],
            ),
            "open": (
                opened,
                [
                    draw([c] * seeds, range(FIRST_SEED, FIRST_SEED + seeds), steps, guided)
                    for c in opened
                ],
            ),
        }
        title = f"{steps} steps, {'guided' if guided else 'no guidance'}"
        found[title] = {}
        for kind, (prompts, rows) in drawn.items():
            counts = measures(prompts, rows, first.setdefault(kind, rows))
            found[title][kind] = {name: round(value, 4) for name, value in counts.items()}
        LOG.info("%s: %s", title, found[title])
    return found


def drawing_with(teacher, codec, scale: float) -> Draw:
    """Draws with a flow teacher and its autoencoder, guided by `scale` where asked."""
    import torch
    from shapes_teacher_denoiser import sample

    from .drawing import to_uint8

    @torch.inference_mode()
    def draw(prompts: list[str], seeds: Sequence[int], steps: int, guided: bool) -> np.ndarray:
        made = []
        for start in range(0, len(prompts), AT_A_TIME):
            some, those = prompts[start : start + AT_A_TIME], seeds[start : start + AT_A_TIME]
            noise = torch.stack(
                [torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(s)) for s in those]
            )
            latents = sample(teacher, some, noise, steps, scale if guided else 1.0)
            made.append(to_uint8(codec.decode(latents)))
        return np.concatenate(made)

    return draw
