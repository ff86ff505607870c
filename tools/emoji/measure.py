"""Stage `measure`: what a teacher draws, counted by the judge, with and without its guidance.

Captions are held out from students (`World.is_held_out`); names and open nouns are counted apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import emoji_measures
from dpdmd_studio.trainer.toys.worlds import image_measures
from PIL import Image
from shapes_teacher_common import LOG
from shapes_teacher_denoiser import sample as flow_sample

from .drawing import Drawer, to_uint8

SETTINGS = ((28, True, 0), (28, True, 1), (28, False, 0), (4, True, 0), (4, False, 0))
"""Steps, whether they are guided, and which seeds: the first is compared with, the second is it on
other seeds, the noise of everything below it."""
NAMES, OPEN_SEEDS, UNSEEN_EACH = 1040, 64, 13
FIRST_SEED, OTHER_SEEDS = 5_000_000, 1_000_000
AT_A_TIME, SHEET, CEILING_EACH = 128, 64, 6

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


def questions(names: int, seeds: int) -> dict[str, list[tuple[str, int]]]:
    """(caption, how many seeds) of each kind: names, pairs no teacher has seen, open captions."""
    here = captions.world()
    unseen = [captions.Said(*pair).caption() for pair in sorted(here.unseen_pairs)]
    return {
        "names": [(text, 1) for text in name_captions(names)],
        "unseen pairs": [(text, UNSEEN_EACH) for text in unseen],
        "open": [(text, seeds) for text in here.classes],
        "wider": [(text, seeds) for text in dict.fromkeys(here.wider.values())],
    }


def table(draw: Draw, names: int = NAMES, seeds: int = OPEN_SEEDS) -> dict[str, dict]:
    """Every setting's counts by kind of caption; drift and distance are from the first setting."""
    kinds, first, found = questions(names, seeds), {}, {}
    for steps, guided, others in SETTINGS:
        title = f"{steps} steps, {'guided' if guided else 'no guidance'}"
        title += ", other seeds" * others
        found[title] = {}
        for kind, asked in kinds.items():
            texts = [text for text, count in asked for _ in range(count)]
            start = FIRST_SEED + others * OTHER_SEEDS
            drawn = draw(texts, range(start, start + len(texts)), steps, guided)
            rows = np.split(drawn, np.cumsum([count for _, count in asked])[:-1])
            measures = emoji_measures() + image_measures() if kind == "open" else emoji_measures()
            counts = measures([text for text, _ in asked], rows, first.setdefault(kind, rows))
            found[title][kind] = {name: round(value, 4) for name, value in counts.items()}
        LOG.info("%s: %s", title, found[title])
    return found


def write_sheet(draw: Draw, folder: Path) -> dict[str, str]:
    """The first 64 held-out captions with seed 0 as sheet.png, eight a row; captions by place."""
    texts = captions.caption_sample(True, SHEET, 0)
    drawn = draw(texts, [0] * SHEET, 28, True)
    side = round(SHEET**0.5)
    rows = [np.concatenate(list(drawn[i : i + side]), axis=1) for i in range(0, SHEET, side)]
    sheet = Image.fromarray(np.concatenate(rows))
    size = (3 * sheet.width, 3 * sheet.height)
    sheet.resize(size, Image.Resampling.BICUBIC).save(folder / "sheet.png")
    return {f"{n // side + 1}.{n % side + 1}": text for n, text in enumerate(texts)}


def ceiling(drawer: Drawer, codec) -> dict[str, float]:
    """Shares of real pictures in placements of their own that the judge reads right, straight and
    through an autoencoder: what no teacher that draws with it can surpass."""
    from dpdmd_studio.trainer.toys.emoji.judging import judge

    source, here, seen = random.Random("ceiling"), captions.world(), []
    for name, style in [*drawer.index] * CEILING_EACH:
        free = captions.random_scene(source)
        seen.append(replace(free, name=name, style=style))
    right = {"straight": 0, "decoded": 0}
    for start in range(0, len(seen), AT_A_TIME):
        some = seen[start : start + AT_A_TIME]
        images = drawer.draw(some, source, here.backgrounds)
        with torch.inference_mode():
            again = codec.decode(codec.encode(images))
        for title, drawn in (("straight", images), ("decoded", again)):
            verdicts = judge().verdicts(to_uint8(drawn))
            right[title] += sum(v.name == s.name for v, s in zip(verdicts, some, strict=True))
    return {title: round(count / len(seen), 4) for title, count in right.items()}


def drawing_with(teacher, codec, scale: float, sample=flow_sample) -> Draw:
    """Draws with a teacher and its autoencoder, guided by `scale` where asked.

    Args:
        sample: latents of (teacher, captions, noise, steps, scale).
    """
    from . import eps

    shape = (4, 12, 12) if sample is eps.sample else (16, 8, 8)

    @torch.inference_mode()
    def draw(prompts: list[str], seeds: Sequence[int], steps: int, guided: bool) -> np.ndarray:
        made = []
        for start in range(0, len(prompts), AT_A_TIME):
            some, those = prompts[start : start + AT_A_TIME], seeds[start : start + AT_A_TIME]
            noise = torch.stack(
                [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in those]
            )
            latents = sample(teacher, some, noise, steps, scale if guided else 1.0)
            made.append(to_uint8(codec.decode(latents)))
        return np.concatenate(made)

    return draw
