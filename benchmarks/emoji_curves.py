"""What students keep of an emoji teacher over their training: where plain DMD loses variety.

    python benchmarks/emoji_curves.py --folder F [--teacher sd3] [--names demo plain] [--seeds 0]

Each run is one of emoji_students.py, longer, whose LoRA is kept at some updates; each kept LoRA is
counted on that benchmark's held-out captions and seeds, four evaluations an image. What is in the
folder is not made again. A student before the last is one of a longer schedule, whose learning rate
has not fallen yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean

import emoji_students
import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands import demo
from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
from dpdmd_studio.trainer.evaluation.evaluate import EvaluationSet, draw_timed
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import emoji_measures
from dpdmd_studio.trainer.toys.worlds import image_measures
from easel import Easel, say

KEPT = (50, 100, 150, 250, 400, 600)
EVERY = 50
LONG = [f"steps={KEPT[-1]}", "dtype=bfloat16"]
SETTINGS = {"demo": [], "plain": ["objective=dmd", "gradient_steps=random"]}


def trained(options: argparse.Namespace, name: str, seed: int) -> list[Path]:
    """The LoRAs of a run at the updates that are kept."""
    folder = options.folder / f"curve-{name}" / f"seed-{seed}"
    kept = [folder / f"step-{step:08d}.safetensors" for step in KEPT]
    if kept[-1].exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    config = emoji_students.settings_of([*LONG, *SETTINGS[name], f"save_every={EVERY}"], seed)
    request = emoji_students.request_of(options.teacher, config, folder)
    prompts = captions.caption_sample(False, demo.TRAINING_PROMPTS, seed)
    run = create_run(folder / "run", request, prompts, overwrite=True)

    def keep(progress) -> None:
        if progress.step in KEPT:
            file = folder / f"step-{progress.step:08d}.safetensors"
            shutil.copy(run.checkpoints / file.name, file)

    outcome = run_distillation(run, on_progress=keep, with_report=False)
    if not outcome.finished:
        raise SystemExit(f"{run.path} stopped after {outcome.step} updates; nothing is counted.")
    return kept


def counted(options: argparse.Namespace, files: list[Path]) -> list[dict[str, dict[str, float]]]:
    """Counts of each LoRA by kind of caption, beside it in a .json."""
    if missing := [file for file in files if not file.with_suffix(".json").exists()]:
        loras = {str(file): [(read_lora(file), 1.0)] for file in missing}
        found: dict[str, dict] = {str(file): {} for file in missing}
        for kind, (_, seeds) in emoji_students.KINDS[True].items():
            texts = emoji_students.texts_of(kind, held_out=True)
            easel = Easel.of(options.teacher, texts, loras)
            first = emoji_students.FIRST_SEED[True]
            material = EvaluationSet(
                easel.material.prompts, easel.material.conditioning, range(first, first + seeds)
            )
            arm, measures = easel.guided("teacher"), emoji_measures() + image_measures()
            teacher = emoji_students.drawn(easel.sampler, arm, material, options.folder)
            for name in found:
                images = draw_timed(easel.sampler, easel.few(name, name), material).images
                found[name][kind] = measures(texts, images, teacher)
        for file in missing:
            file.with_suffix(".json").write_text(json.dumps(found[str(file)], indent=1))
    return [json.loads(file.with_suffix(".json").read_text()) for file in files]


def main() -> None:
    """Train and count what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--names", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {k: v for k, v in emoji_students.COLUMNS.items() if v[0]}
    print(f"| objective | updates | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}")
    for name in options.names:
        runs = [counted(options, trained(options, name, seed)) for seed in options.seeds]
        for step, *points in zip(KEPT, *runs, strict=True):
            cells = [
                format(mean(point[kind].get(key, float("nan")) for point in points), form)
                for kind, key, form in columns.values()
            ]
            print(f"| {name} | {step} | {' | '.join(cells)} |", flush=True)
        say(f"{name}: done")


if __name__ == "__main__":
    main()
