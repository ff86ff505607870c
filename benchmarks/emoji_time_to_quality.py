"""How many processor seconds of training it takes until a student is as good as is asked.

    python benchmarks/emoji_time_to_quality.py --folder F [--teacher sd3] [--seeds 0 1 2]

Students by the general defaults of settings (and before, and plain DMD, and the three full copies
of three_copies.py), each kept at eight moments of its run and counted by the judge on held-out
captions and seeds. The goal was fixed before anything was counted: distinct things from 95 % of the
teacher's on, and valid images within 5 points of its. Seconds are of training alone, with one
thread. What is in the folder is not made again; the table goes to stdout.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import emoji_settings
import emoji_students
import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands import demo
from dpdmd_studio.trainer.commands.distill import create_run, prepare, run_distillation
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation.evaluate import ImageSampler, draw_timed
from dpdmd_studio.trainer.evaluation.lora_switch import LoraSwitch
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import count_emoji
from dpdmd_studio.trainer.training.batches import Batch
from easel import Easel
from three_copies import ThreeCopies

MOMENTS = 8
SEEDS = {"names": 8, "open": 64}
DIVERSITY, VALID = 0.95, 0.05
COPIES_LR = 1e-4
"""The published loop's 1e-5 for full weights, by the constant of emoji_students.py."""
COPIES, COPIES_FAKE_UPDATES = "three copies", 5
ARMS = {
    "default": {},
    "default before": emoji_settings.BEFORE,
    "plain DMD, default": {"objective": "dmd"},
    "plain DMD, default before": emoji_settings.BEFORE | {"objective": "dmd"},
    COPIES: {"share_rollouts": False, "fake_updates": COPIES_FAKE_UPDATES},
}
Point = dict[str, float]


def new_run(options: argparse.Namespace, name: str, seed: int) -> RunDirectory:
    """The run of an arm."""
    folder = options.folder / name / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"dtype": "bfloat16"} | ARMS[name]
    texts = [f"{key}={value}" for key, value in changes.items()]
    config = emoji_students.settings_of(texts, seed, "full-size")
    config = replace(config, save_every=max(1, config.steps // MOMENTS))
    request = emoji_students.request_of(options.teacher, config, folder)
    prompts = captions.caption_sample(False, demo.TRAINING_PROMPTS, seed)
    return create_run(folder / "run", request, prompts, overwrite=True)


def students_of(run: RunDirectory, easels: dict[str, Easel]) -> list[Point]:
    """Train, and count the LoRA at every moment."""
    started, kept = time.process_time(), {}
    every = run.settings()["config"]["save_every"]

    def keep(progress) -> None:
        if progress.step % every == 0:
            file = f"step-{progress.step:08d}.safetensors"
            shutil.copy(run.checkpoints / file, run.path.parent / file)
            kept[progress.step] = time.process_time() - started

    outcome = run_distillation(run, on_progress=keep, with_report=False)
    if not outcome.finished:
        raise SystemExit(f"{run.path} stopped after {outcome.step} updates; nothing is counted.")
    found = []
    for step, seconds in kept.items():
        lora = read_lora(run.path.parent / f"step-{step:08d}.safetensors")
        switches = {
            k: LoraSwitch(e.checkpoint, {"student": [(lora, 1.0)]}) for k, e in easels.items()
        }
        samplers = {k: replace(e.sampler, use=switches[k].use) for k, e in easels.items()}
        found.append({"update": step, "seconds": seconds} | counted(easels, samplers, "student"))
        for switch in switches.values():
            switch.use("teacher")
    return found


def copies_of(run: RunDirectory, easels: dict[str, Easel]) -> list[Point]:
    """The same with three full copies, whose prompts, batches and length are the run's."""
    prepare(run)
    session = open_session(run)
    config, batches = session.config, session.trainer.batches
    loop = ThreeCopies(
        copy.deepcopy(easels["open"].sampler.call),
        num_steps=config.num_steps,
        anchor=7,
        guidance=session.teacher.guidance.scale,
        learning_rate=COPIES_LR,
    )
    spent, found = 0.0, []
    for step in range(1, config.steps + 1):
        started = time.process_time()
        torch.manual_seed(config.seed * 1_000_000 + step)
        batch = batches.batch("student", step)
        with torch.autocast("cpu", torch.bfloat16):
            loop.student_update(batch.noise, pair(batch))
            for index in range(COPIES_FAKE_UPDATES):
                batch = batches.batch("fake", step, index)
                loop.fake_update(batch.noise, pair(batch))
        spent += time.process_time() - started
        if step % config.save_every == 0:
            samplers = {
                k: replace(e.sampler, call=loop.student, use=lambda _: None)
                for k, e in easels.items()
            }
            found.append({"update": step, "seconds": spent} | counted(easels, samplers, "student"))
    return found


def pair(batch: Batch) -> list[Conditioning]:
    """Conditional and unconditional input."""
    return [batch.prompts.conditional, batch.prompts.unconditional]


def counted(
    easels: Mapping[str, Easel], samplers: Mapping[str, ImageSampler], weights: str
) -> Point:
    """The judge's counts of few steps, or for "teacher" of its own many guided ones."""
    point = {}
    for kind, easel in easels.items():
        arm = easel.guided(weights) if weights == "teacher" else easel.few(weights, weights)
        images = draw_timed(samplers[kind], arm, easel.material).images
        numbers = count_emoji(easel.material.prompts, images, images)
        point |= {f"{kind} {key}": value for key, value in numbers.items()}
    return point


def easels_of(teacher: str) -> dict[str, Easel]:
    """What draws the captions of each kind."""
    found, first = {}, emoji_students.FIRST_SEED[True]
    for kind, seeds in SEEDS.items():
        easel = Easel.of(teacher, emoji_students.texts_of(kind, held_out=True))
        material = replace(easel.material, seeds=tuple(range(first, first + seeds)))
        found[kind] = replace(easel, material=material)
    return found


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds, made where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        path.write_text(json.dumps(made, indent=1))
    return json.loads(path.read_text())


def points_of(options: argparse.Namespace, name: str, seed: int) -> list[Point]:
    """Every moment of a run."""

    def make() -> list[Point]:
        run, easels = new_run(options, name, seed), easels_of(options.teacher)
        return (copies_of if name == COPIES else students_of)(run, easels)

    return kept(options.folder / name / f"seed-{seed}" / "points.json", make)


def is_good(point: Point, teacher: Point) -> bool:
    """The goal."""
    return (
        point["open diversity"] >= DIVERSITY * teacher["open diversity"]
        and point["names valid"] >= teacher["names valid"] - VALID
    )


def row(name: str, seed: int, points: Sequence[Point], teacher: Point) -> str:
    """First good moment, the moment from which all are good, and the best one."""
    good = [is_good(point, teacher) for point in points]
    first = next((p for p, ok in zip(points, good, strict=True) if ok), None)
    stays = next((p for i, p in enumerate(points) if all(good[i:])), None)
    cells = [f"{p['update']}: {p['seconds']:.0f} s" if p else "never" for p in (first, stays)]
    ends = points[-1]
    shares = " / ".join(f"{p['open diversity'] / teacher['open diversity']:.0%}" for p in points)
    valid = " / ".join(f"{100 * (p['names valid'] - teacher['names valid']):+.0f}" for p in points)
    whole = f"{ends['update']}: {ends['seconds']:.0f} s"
    return f"| {' | '.join([name, str(seed), *cells, whole, shares, valid])} |"


def main() -> None:
    """Train and count what is missing, and print a line for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)

    def of_teacher() -> Point:
        easels = easels_of(options.teacher)
        return counted(easels, {k: e.sampler for k, e in easels.items()}, "teacher")

    teacher = kept(options.folder / "teacher.json", of_teacher)
    heads = ["arm", "seed", "first good", "good for good", "whole run",
             "distinct, share of the teacher's", "valid, points"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for seed in options.seeds:
        for name in options.arms:
            print(row(name, seed, points_of(options, name, seed), teacher), flush=True)


if __name__ == "__main__":
    main()
