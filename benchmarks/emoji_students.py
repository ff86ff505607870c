"""What students keep of an emoji teacher, for any settings: the runs behind `docs/fidelity.md`.

    python benchmarks/emoji_students.py train --name NAME --folder F --seeds 0 1 2 \\
        --set student_lr=3e-4 --set steps=300 [--teacher sd1] [--base full-size]
    python benchmarks/emoji_students.py table --folder F

`train` distils the teacher with the demo's settings and what --set changes, and has the judge count
captions of all kinds ("names" below: most say one), and those that leave ten names open or more.
--base full-size takes the general defaults instead, with learning rates ten times as high: that
constant stands for the size of these networks, and only ratios to it are learned here. What is
tuned is tuned on captions that training uses, too (the default); --held-out counts captions and
seeds that nothing has seen. The teacher's own lines and its noise (itself on other seeds) are
drawn and counted once for a folder, which is one teacher's. A run that is in the folder is not made
again; `table` prints means over training seeds, the worst in brackets. Seconds are the processor's,
of training alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import numpy as np
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.trainer.commands import demo
from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
from dpdmd_studio.trainer.evaluation.evaluate import ArmSetting, EvaluationSet, Stage, draw_timed
from dpdmd_studio.trainer.evaluation.monitor import Monitor
from dpdmd_studio.trainer.evaluation.run_evaluation import (
    evaluation_set,
    run_arms,
    session_sampler,
)
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import OPEN, emoji_measures
from dpdmd_studio.trainer.toys.worlds import image_measures
from easel import asset, say

KINDS = {
    False: {"names": (40, 8), "open": (36, 24)},
    True: {"names": (40, 16), "open": (12, 64)},
}
"""Captions, and seeds of each; for tuning more captions, which differ more than seeds do."""
SAMPLE = 160
FIRST_SEED = {False: 3_000_000, True: 6_000_000}
OTHER_SEEDS = 100_000
NOISE, GUIDED = "Teacher on other seeds", "Teacher, 4 steps, guided"
COLUMNS = {
    "seconds": (None, "seconds", ".0f"),
    "valid": ("names", "valid", ".1%"),
    "as asked": ("names", "adherence", ".1%"),
    "style": ("names", "style", ".1%"),
    "right, open": ("open", "adherence", ".1%"),
    "distinct": ("open", "diversity", ".1f"),
    "Eq. 9": ("open", "efficientnet_diversity", ".4f"),
    "distance": ("open", "efficientnet_distance", ".4f"),
    "saturation": ("open", "saturation", ".2f"),
    "contrast": ("open", "contrast", ".2f"),
}


LR_CONSTANT = 10.0
"""A learning rate here to one of a full-size checkpoint; fixed before anything was compared."""
FULL_SIZE = DistillConfig().to_dict() | {
    "student_lr": LR_CONSTANT * DistillConfig().student_lr,
    "fake_lr": LR_CONSTANT * DistillConfig().fake_lr,
    "student_rank": demo.CONFIG.student_rank,
    "fake_rank": demo.CONFIG.fake_rank,
}
BASES = {"demo": demo.CONFIG.to_dict(), "full-size": FULL_SIZE}


def settings_of(changes: list[str], seed: int, base: str = "demo") -> DistillConfig:
    """The configuration of that base with the changes."""
    kinds = {spec.name: type(spec.default) for spec in dataclasses.fields(DistillConfig)}
    changed = dict(pair.split("=", 1) for pair in changes)
    values = {
        k: text == "True" if kinds[k] is bool else kinds[k](text) for k, text in changed.items()
    }
    kept = {"preview_every": 0, "save_every": 10_000, "evaluate_every": 0, "keep": "last"}
    return DistillConfig.from_dict(BASES[base] | kept | values | {"seed": seed})


def request_of(teacher: str, config: DistillConfig, folder: Path) -> DistillRequest:
    """A run with one of the emoji teachers whose LoRA goes into the folder."""
    return DistillRequest(
        model=ModelFiles(checkpoint=str(asset(teacher))),
        config=config,
        output=str(folder / "student.safetensors"),
        overwrite=True,
    )


def train_missing(options: argparse.Namespace, seed: int) -> None:
    """One run, unless its numbers are in the folder."""
    part = "held-out" if options.held_out else "tuning"
    if not (options.folder / options.name / f"seed-{seed}" / f"{part}.json").exists():
        train(options, seed)


def train(options: argparse.Namespace, seed: int) -> None:
    """One run, and its numbers beside it."""
    folder = options.folder / options.name / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    request = request_of(options.teacher, settings_of(options.set, seed, options.base), folder)
    prompts = captions.caption_sample(False, demo.TRAINING_PROMPTS, seed)
    run = create_run(folder / "run", request, prompts, overwrite=True)
    started = time.process_time()
    with measuring() as measured_for:
        outcome = run_distillation(run, on_progress=lambda _: None, with_report=False)
    if not outcome.finished:
        raise SystemExit(f"{run.path} stopped after {outcome.step} updates; nothing is counted.")
    seconds = time.process_time() - started - sum(measured_for)
    session = outcome.session
    arms = measured(session, arms_of(session, options.held_out), options.folder, options.held_out)
    for kinds in arms.values():
        kinds["seconds"] = seconds
    part = "held-out" if options.held_out else "tuning"
    kept_step = run.read_json("result.json")["kept_step"]
    result = {"base": options.base, "set": options.set, "kept_step": kept_step, "arms": arms}
    (folder / f"{part}.json").write_text(json.dumps(result, indent=1))
    say(f"{options.name} seed {seed}: {row(list(arms)[-1], [list(arms.values())[-1]])}")


@contextlib.contextmanager
def measuring() -> Iterator[list[float]]:
    """Processor seconds of each measurement that a run makes inside, which choose its student."""
    measure, found = Monitor.measure, []

    def timed(monitor: Monitor, step: int) -> None:
        started = time.process_time()
        measure(monitor, step)
        found.append(time.process_time() - started)

    with patch.object(Monitor, "measure", timed):
        yield found


def arms_of(session, held_out: bool) -> list[ArmSetting]:
    """Teacher, without guidance, four guided steps, the student; held out also off at step one."""
    arms = run_arms(session)
    few, scale = session.trainer.grids.student.sigmas.cpu(), session.teacher.guidance.scale
    stage = Stage(weights="teacher", sigmas=few, guidance_scale=scale)
    students = arms[2:] if held_out else arms[-1:]
    return [*arms[:2], ArmSetting(name=GUIDED, note="", stages=(stage,)), *students]


def measured(
    session, arms: list[ArmSetting], cache: Path, held_out: bool
) -> dict[str, dict[str, Any]]:
    """Counts by arm and kind of caption; the teacher's own images are kept in the folder."""
    sampler = session_sampler(session)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for kind, (_, seeds) in KINDS[held_out].items():
        texts = texts_of(kind, held_out=held_out)
        first, measures = FIRST_SEED[held_out], emoji_measures() + image_measures()
        others = evaluation_set(
            session, texts, range(first + OTHER_SEEDS, first + OTHER_SEEDS + seeds)
        )
        material = evaluation_set(session, texts, range(first, first + seeds))
        teacher = drawn(sampler, arms[0], material, cache)
        lines = [(arm.name, arm, material) for arm in arms]
        if held_out:
            lines.insert(1, (NOISE, arms[0], others))
        for name, arm, asked in lines:
            kept = cache / f"{kind}-{held_out}-{name}.json" if of_teacher(arm) else None
            if kept and kept.exists():
                found[name][kind] = json.loads(kept.read_text())
                continue
            images = teacher
            if name != arms[0].name:
                images = drawn(sampler, arm, asked, cache if kept else None)
            found[name][kind] = measures(texts, images, teacher)
            if kept:
                kept.write_text(json.dumps(found[name][kind]))
    return dict(found)


def of_teacher(arm: ArmSetting) -> bool:
    """Whether no training changes what the arm draws."""
    return all(stage.weights == "teacher" for stage in arm.stages)


def texts_of(kind: str, *, held_out: bool) -> list[str]:
    """The captions of a kind: most say a name, or all leave ten names open and more."""
    wanted, count = captions.caption_sample(held_out, SAMPLE, 7), KINDS[held_out][kind][0]
    if kind == "names":
        return wanted[::2][:count]
    return [text for text in wanted[1::2] if len(captions.world().answers(text)) >= OPEN][:count]


def drawn(
    sampler, arm: ArmSetting, material: EvaluationSet, cache: Path | None
) -> list[list[np.ndarray]]:
    """Images by caption and seed; out of the folder where no training changes them."""
    if cache is None:
        return draw_timed(sampler, arm, material).images
    stage = arm.stages[0]
    facts = (stage.guidance_scale, len(stage.sigmas) - 1, material.seeds[0], len(material.seeds))
    path = cache / f"teacher-{'-'.join(map(str, facts))}-{len(material.prompts)}.pt"
    if not path.exists():
        torch.save(draw_timed(sampler, arm, material).images, path)
    return torch.load(path, weights_only=False)


def table(options: argparse.Namespace) -> None:
    """Markdown tables of all runs in the folder, tuning and held out apart."""
    for part in ("tuning", "held-out"):
        rows: dict[str, list[dict]] = {}
        for path in sorted(options.folder.glob(f"*/seed-*/{part}.json")):
            arms = json.loads(path.read_text())["arms"]
            for name, kinds in arms.items():
                own = "student" in name.lower()  # which the teacher's own lines are not
                title = f"{path.parts[-3]}: {name}" if own else name
                rows.setdefault(title, []).append(kinds)
        if rows:
            heads = " | ".join(["", "runs", *COLUMNS])
            print(f"\n### {part}\n\n| {heads} |\n|{' --- |' * (2 + len(COLUMNS))}")
            for title, found in rows.items():
                print(row(title, found))


def row(title: str, found: list[dict]) -> str:
    """Means over runs, with the lowest and highest in brackets where there are several."""
    cells = [title, str(len(found))]
    for kind, name, form in COLUMNS.values():
        values = [(kinds[kind] if kind else kinds).get(name, float("nan")) for kinds in found]
        text = format(mean(values), form)
        low, high = format(min(values), form), format(max(values), form)
        cells.append(text if low == high else f"{text} ({low} to {high})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("train", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--name", default="demo")
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--base", choices=tuple(BASES), default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "table":
        return table(options)
    for seed in options.seeds:
        train_missing(options, seed)
    return None


if __name__ == "__main__":
    main()
