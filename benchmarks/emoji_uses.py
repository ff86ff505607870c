"""What a student of an emoji teacher draws at other strengths, and in other numbers of steps.

    python benchmarks/emoji_uses.py --teacher sd3 --folder F LORA [LORA ...]

Held-out captions and seeds, fewer seeds than emoji_students.py has; means over the LoRAs, which are
one setting's students. The folder keeps the teacher's images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import emoji_students
import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.evaluation.evaluate import EvaluationSet, draw_timed
from dpdmd_studio.trainer.toys.emoji.counts import emoji_measures
from dpdmd_studio.trainer.toys.worlds import image_measures
from easel import Easel

USES = [(0.6, 4), (0.8, 4), (1.0, 4), (1.2, 4), (1.0, 2), (1.0, 3), (1.0, 6), (1.0, 8)]
"""(strength, steps); the LoRAs are trained for 1 and 4."""
SEEDS = {"names": 8, "open": 32}


def counted(
    options: argparse.Namespace, kind: str, files: Sequence[Path]
) -> dict[tuple[float, int], list[dict[str, float]]]:
    """Counts by use, a LoRA each."""
    texts = emoji_students.texts_of(kind, held_out=True)
    strengths = {strength for strength, _ in USES}
    loras = {f"{f} {s}": [(read_lora(f), s)] for f in files for s in strengths}
    easel, first = Easel.of(options.teacher, texts, loras), emoji_students.FIRST_SEED[True]
    material = EvaluationSet(
        easel.material.prompts, easel.material.conditioning, range(first, first + SEEDS[kind])
    )
    measures, arm = emoji_measures() + image_measures(), easel.guided("teacher")
    teacher = emoji_students.drawn(easel.sampler, arm, material, options.folder)
    found = {}
    for strength, steps in USES:
        arms = [easel.few(str(f), f"{f} {strength}", steps) for f in files]
        images = [draw_timed(easel.sampler, arm, material).images for arm in arms]
        found[strength, steps] = [measures(texts, each, teacher) for each in images]
    return found


def main() -> None:
    """Print a line for each use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loras", nargs="+", type=Path, metavar="LORA")
    parser.add_argument("--teacher", choices=("sd3", "sd1"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    columns = {k: v for k, v in emoji_students.COLUMNS.items() if v[0]}
    found = {kind: counted(options, kind, options.loras) for kind in SEEDS}
    print(f"| strength | steps | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}")
    for use in USES:
        cells = [
            format(mean(each.get(key, float("nan")) for each in found[kind][use]), form)
            for kind, key, form in columns.values()
        ]
        print(f"| {use[0]:g} | {use[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
