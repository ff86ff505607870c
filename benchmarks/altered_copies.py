"""What features see: altered copies of images beside others of the same prompts.

    python benchmarks/altered_copies.py teacher|photographs|emoji [--cache CACHE]

Nine seeds each of five or six prompts, as a run is measured: images of the embedded flow teacher,
crops of the photographs that come with gradio, or scenes of emoji. What is altered are other seeds
of the same prompts, because a student's images are never its teacher's. A line gives, in the layout
feature and in EfficientNet's at the teacher's brightness (by which a run chooses its student): the
energy distance from the teacher's images; by how many standard errors over prompts the altered
copies are farther than the same seeds unaltered, which is clear to a run at two or more; diversity
as a share of the teacher's. Then brightness and saturation as shares of the teacher's.
"""

from __future__ import annotations

import argparse
import importlib.resources
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import mounting  # noqa: F401  (before the package is imported)
import numpy as np
import torch
from dpdmd_studio.core.images.diversity import sample_diversity
from dpdmd_studio.trainer.evaluation.evaluate import EvaluationSet
from dpdmd_studio.trainer.evaluation.features import (
    imagenet_features,
    layout_features,
)
from dpdmd_studio.trainer.evaluation.measures import Rows, energy_distance
from dpdmd_studio.trainer.evaluation.perception import Perception
from dpdmd_studio.trainer.toys.emoji import captions
from easel import Easel
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

PROMPTS, SEEDS = 6, 9
PHOTOGRAPHS = ("cheetah1.jpg", "cheetah.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")
HEADS = ("", "layout: distance", "errors", "diversity", "EfficientNet: distance", "errors",
         "diversity", "brightness", "saturation")  # fmt: skip
LEFT_SO = ("brightness x 1.1", "brightness x .9")
Alteration = Callable[[Image.Image], Image.Image]


def blurred(share: float) -> Alteration:
    """A Gaussian blur whose radius is that share of the image's side."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(min(image.size) * share))


def brighter(factor: float) -> Alteration:
    """All channels times the factor."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def saturated(factor: float) -> Alteration:
    """Away from grey by the factor."""
    return lambda image: ImageEnhance.Color(image).enhance(factor)


def noised(deviation: float) -> Alteration:
    """Independent noise on every pixel and channel, in levels of 255."""
    return lambda image: _shifted(
        image, np.random.default_rng(0).normal(0, deviation, (*image.size[::-1], 3))
    )


def tinted(levels: float) -> Alteration:
    """Red up by so many levels of 255."""
    return lambda image: _shifted(image, np.array([levels, 0, 0]))


def _shifted(image: Image.Image, by: np.ndarray) -> Image.Image:
    return Image.fromarray((np.asarray(image) + by).clip(0, 255).round().astype(np.uint8))


def cropped(share: float) -> Alteration:
    """The middle, with so much of both sides."""

    def crop(image: Image.Image) -> Image.Image:
        left, top = (round(side * (1 - share) / 2) for side in image.size)
        middle = image.crop((left, top, image.width - left, image.height - top))
        return middle.resize(image.size, Image.Resampling.BICUBIC)

    return crop


ALTERATIONS: dict[str, Alteration] = {
    "blur, 1/256 of the side": blurred(1 / 256),
    "blur, 1/128": blurred(1 / 128),
    "blur, 1/64": blurred(1 / 64),
    "noise, 4 levels": noised(4),
    "noise, 16": noised(16),
    "brightness x .9": brighter(0.9),
    "brightness x 1.1": brighter(1.1),
    "brightness x 1.3": brighter(1.3),
    "saturation x .8": saturated(0.8),
    "saturation x 1.5": saturated(1.5),
    "red + 24 levels": tinted(24),
    "cropped to .9": cropped(0.9),
}


def altered(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """The images as they are, then each altered copy of them by name."""
    yield "unaltered", rows
    for name, alter in ALTERATIONS.items():
        yield name, [[np.asarray(alter(Image.fromarray(i))) for i in row] for row in rows]
    yield "three seeds of nine", [(list(row[:3]) * len(row))[: len(row)] for row in rows]
    yield "every seed alike", [[row[0]] * len(row) for row in rows]


def teacher_images() -> tuple[Rows, Rows, dict[str, Rows]]:
    """The flow teacher's images of six captions, on two sets of seeds, and its undistilled ones."""
    easel = Easel.of("sd3", captions.caption_sample(True, PROMPTS, 0))
    full = easel.guided("Teacher")
    few = easel.few("4 steps, no guidance, undistilled")

    def drawn(arm, first: int) -> Rows:
        seeds = tuple(range(first, first + SEEDS))
        material = EvaluationSet(easel.material.prompts, easel.material.conditioning, seeds)
        return replace(easel.sampler).draw(arm, material)

    other = 7_000_000
    return drawn(full, 6_000_000), drawn(full, other), {few.name: drawn(few, other)}


def photographs() -> tuple[Rows, Rows, dict[str, Rows]]:
    """Square crops of photographs, each between a half and all of the shorter side."""
    folder = importlib.resources.files("gradio") / "media_assets" / "images"
    source, rows = random.Random(0), []
    for name in PHOTOGRAPHS:
        image, row = Image.open(str(folder / name)).convert("RGB"), []
        for _ in range(2 * SEEDS):
            side = round(min(image.size) * source.uniform(0.5, 1))
            left, top = (source.randint(0, length - side) for length in image.size)
            row.append(np.asarray(image.crop((left, top, left + side, top + side))))
        rows.append(row)
    return [row[:SEEDS] for row in rows], [row[SEEDS:] for row in rows], {}


def emoji_images(cache: Path) -> tuple[Rows, Rows, dict[str, Rows]]:
    """Scenes of the emoji of six wide nouns, 128 pixels a side."""
    from emoji import drawing, pictures, world

    here, source = captions.world(), random.Random(0)
    drawer = drawing.Drawer(pictures.render(cache, world.selection(cache)), 128)
    wide = sorted(noun for noun, names in here.nouns.items() if len(names) >= 10)
    rows = []
    for noun in source.sample(wide, PROMPTS):
        pairs = sorted(pair for pair in drawer.index if pair[0] in here.nouns[noun])
        scenes = [captions.random_scene(source) for _ in range(2 * SEEDS)]
        chosen = [source.choice(pairs) for _ in scenes]
        scenes = [replace(s, name=n, style=t) for s, (n, t) in zip(scenes, chosen, strict=True)]
        rows.append(list(drawing.to_uint8(drawer.draw(scenes, source, here.backgrounds))))
    return [row[:SEEDS] for row in rows], [row[SEEDS:] for row in rows], {}


def table(title: str, teacher: Rows, others: Rows, more: dict[str, Rows]) -> None:
    """Every altered copy in both features, and how far its colours drift."""
    layout, network = layout_features(), imagenet_features(torch.device("cpu"))
    perception = Perception(teacher)

    def seen(rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
        return [layout.of(row) for row in rows], perception.vectors(network, rows)

    def as_it_is(rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
        return [layout.of(row) for row in rows], [network.of(row) for row in rows]

    theirs, plain = as_it_is(teacher), []
    print(f"\n### {title}\n\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    for name, rows in itertools.chain(altered(others), more.items()):
        drift = [f"{mean(shares):.2f}" for shares in perception.drift(rows).values()]
        for said, look in ((name, seen), (f"{name}, left so", as_it_is)):
            if look is as_it_is and name not in LEFT_SO:
                continue
            cells = []
            for number, (ours, wanted) in enumerate(zip(look(rows), theirs, strict=True)):
                apart = [energy_distance(*pair) for pair in zip(ours, wanted, strict=True)]
                plain += [apart] if len(plain) <= number else []
                kept = mean(map(sample_diversity, ours)) / mean(map(sample_diversity, wanted))
                cells += [f"{mean(apart):.4f}", errors(plain[number], apart), f"{kept:.0%}"]
            print(f"| {said} | {' | '.join(cells + drift)} |", flush=True)


def errors(plain: Sequence[float], altered: Sequence[float]) -> str:
    """How many standard errors over prompts the altered copies are farther than the plain ones."""
    gains = [b - a for a, b in zip(plain, altered, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains))
    return f"{mean(gains) / error:+.1f}" if error else "0"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", choices=("teacher", "photographs", "emoji"))
    parser.add_argument("--cache", type=Path, help="of tools/make_emoji_teacher.py, for emoji")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.images == "teacher":
        table("Images of the embedded flow teacher", *teacher_images())
    elif options.images == "photographs":
        table("Crops of five photographs", *photographs())
    else:
        table("Scenes of emoji", *emoji_images(options.cache))


if __name__ == "__main__":
    main()
