"""What a base in few bits changes of the emoji teachers: predictions, and images of the same seeds.

    python benchmarks/packed_bases.py [--kinds int8]

Predictions: root mean square of the difference from the float32 base's over that of the base's, of
all captions at eight levels from the highest to a low one, unguided. Images: the teacher's own
guided steps with the same seeds, all levels of grey (root mean square), the judge's *as asked*, and
EfficientNet's distance from the whole base's images.
"""

from __future__ import annotations

import argparse
from statistics import mean

import emoji_students
import numpy as np
import torch
from dpdmd_studio.core.diffusion.schedule import Levels, trailing_positions
from dpdmd_studio.trainer.evaluation.evaluate import EvaluationSet, draw_timed
from dpdmd_studio.trainer.memory.packed_base import quantise_base
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.toys.emoji.counts import emoji_measures
from dpdmd_studio.trainer.toys.worlds import image_measures
from easel import Easel

SEEDS, LEVELS = range(6_000_000, 6_000_008), 8


@torch.no_grad()
def predictions(easel: Easel) -> list[torch.Tensor]:
    """Of the same noise at each level, a caption a row."""
    texts = Conditioning.cat(list(easel.material.conditioning))
    shape = (len(easel.material.prompts), *easel.sampler.latent_shape)
    levels = Levels.at_positions(easel.checkpoint.schedule, trailing_positions(LEVELS))
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    call = easel.sampler.call
    return [call(x_t, levels[i].timesteps.expand(len(x_t)), texts) for i in range(LEVELS)]


def main() -> None:
    """A line for each teacher and format."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["int8", "nf4"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = emoji_students.texts_of("names", held_out=True)
    print("| teacher | base | predictions | grey levels | as asked | distance |")
    print("|---|---|---|---|---|---|", flush=True)
    measures = emoji_measures() + image_measures()
    for teacher in ("sd3", "sd1"):
        right, images = [], []
        for kind in ("keep", *options.kinds):
            easel = Easel.of(teacher, texts)
            quantise_base(easel.checkpoint.network, kind)
            whole = easel.material
            material = EvaluationSet(whole.prompts, whole.conditioning, tuple(SEEDS))
            found = predictions(easel)
            drawn = draw_timed(easel.sampler, easel.guided("teacher"), material).images
            right, images = right or found, images or drawn
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)]
            grey = np.sqrt(np.mean((np.float32(drawn) - np.float32(images)) ** 2))
            counts = measures(texts, drawn, images)
            cells = (f"{mean(errors):.3%}", f"{grey:.2f}", f"{counts['adherence']:.1%}",
                     f"{counts['efficientnet_distance']:.5f}")  # fmt: skip
            print(f"| {teacher} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
