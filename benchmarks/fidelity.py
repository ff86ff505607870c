"""What a student keeps of its teacher, for any settings: the runs behind `docs/fidelity.md`.

    python benchmarks/fidelity.py train --teacher sd3 --name m2 --folder F --seeds 0 1 2 \\
        --set num_anchored_steps=2 --set steps=600
    python benchmarks/fidelity.py table --folder F

`train` distils the embedded teacher with the settings that the search began with and what --set
changes, and measures the teacher with and without guidance and the student. What is tuned is tuned
on captions that training uses, too (the default); --held-out measures on captions and seeds that
nothing has seen instead, the training-free baseline as well. `measure --students FILE ...` does so
for LoRA files. A run that is in the folder is not made again; `table` prints the means over
training seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import mounting
import torch

if TYPE_CHECKING:
    from dpdmd_studio.app.config.distill_config import DistillConfig
    from dpdmd_studio.app.runs.directory import RunDirectory
    from dpdmd_studio.trainer.commands.distill import Outcome
    from dpdmd_studio.trainer.evaluation.evaluate import (
        ArmSetting,
        Drawn,
        EvaluationSet,
        ImageSampler,
    )
    from dpdmd_studio.trainer.training.loop import Progress

ASSETS = mounting.ROOT / "trainer" / "assets"
CAPTIONS, SEEDS_EACH = 150, 9
COLUMNS = ("teacher", "run", "seeds", "diversity", "least attribute", "Eq. 9", "valid",
           "adherence", "distance", "seconds")  # fmt: skip
# What the search began with. The demo has what it ended with, and is cheaper for emoji.
BASE = {
    "steps": 300, "num_anchored_steps": 1, "gradient_steps": "random", "fake_updates": 5,
    "teacher_steps": 0,
}  # fmt: skip
TUNING_SEEDS, HELD_OUT_SEEDS = 3_000_000, 6_000_000


def settings_of(options: argparse.Namespace, seed: int) -> DistillConfig:
    """The demo's configuration with the changes."""
    from dpdmd_studio.app.config.distill_config import DistillConfig
    from dpdmd_studio.trainer.commands.demo import CONFIG

    kinds = {spec.name: type(spec.default) for spec in dataclasses.fields(DistillConfig)}
    changed = dict(pair.split("=", 1) for pair in options.set)
    values = {
        name: text == "True" if kinds[name] is bool else kinds[name](text)
        for name, text in changed.items()
    }
    kept = {"preview_every": 0, "save_every": 10_000, "seed": seed}
    return DistillConfig.from_dict(CONFIG.to_dict() | BASE | kept | values)


def train(options: argparse.Namespace, seed: int) -> None:
    """One run, and its numbers beside it."""
    folder = options.folder / options.teacher / options.name / f"seed-{seed}"
    config = settings_of(options, seed)
    started = time.perf_counter()
    outcome = distilled(options.teacher, config, folder)
    seconds = time.perf_counter() - started
    result = {
        "set": options.set,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
    }
    part = "held_out" if options.held_out else "tuning"
    result[part] = measured(outcome.session, options.folder, held_out=options.held_out)
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    say(f"{options.teacher} {options.name} seed {seed}: {summary(result)}")


def new_run(teacher: str, config: DistillConfig, folder: Path) -> RunDirectory:
    """A run in `folder` that distils an embedded teacher on captions of the run's seed."""
    from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
    from dpdmd_studio.trainer.commands.demo import TRAINING_PROMPTS
    from dpdmd_studio.trainer.commands.distill import create_run
    from dpdmd_studio.trainer.toys.shapes import caption_sample

    folder.mkdir(parents=True, exist_ok=True)
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(ASSETS / f"shapes-{teacher}.safetensors")),
        config=config,
        output=str(folder / "student.safetensors"),
        overwrite=True,
    )
    prompts = caption_sample(held_out=False, count=TRAINING_PROMPTS, seed=config.seed)
    return create_run(folder / "run", request, prompts, overwrite=True)


def distilled(
    teacher: str,
    config: DistillConfig,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """A whole run, anew."""
    from dpdmd_studio.trainer.commands.distill import run_distillation

    run = new_run(teacher, config, folder)
    return run_distillation(run, on_progress=on_progress)


def measured(session, cache: Path, *, held_out: bool) -> dict[str, dict[str, float]]:
    """Measures by arm; images of the teacher alone are kept, baselines only drawn if held out."""
    from dpdmd_studio.trainer.evaluation.comparison import measures_by_arm
    from dpdmd_studio.trainer.evaluation.evaluate import evaluate
    from dpdmd_studio.trainer.evaluation.run_evaluation import (
        evaluation_set,
        run_arms,
        session_sampler,
    )
    from dpdmd_studio.trainer.toys.shapes import caption_sample
    from dpdmd_studio.trainer.toys.worlds import measures_for

    captions = caption_sample(held_out=held_out, count=CAPTIONS, seed=7)
    first = HELD_OUT_SEEDS if held_out else TUNING_SEEDS
    seeds = range(first, first + SEEDS_EACH)
    material = evaluation_set(session, captions, seeds)
    sampler, arms = session_sampler(session), run_arms(session)
    if not held_out:
        arms.pop(2)  # the training-free baseline
    facts = [session.teacher.name, held_out, session.teacher.guidance.scale, CAPTIONS]
    if session.config.base_weights != "keep":  # that base draws its teacher's images otherwise
        facts.append(session.config.base_weights)
    known = {  # the teacher, with and without guidance
        arm.name: remembered(cache, facts, sampler, arm, material) for arm in arms[:2]
    }
    found = evaluate(sampler, arms, material, measures_for(session.checkpoint.path), known=known)
    return measures_by_arm(found)


def remembered(
    cache: Path,
    facts: Sequence[object],
    sampler: ImageSampler,
    arm: ArmSetting,
    material: EvaluationSet,
) -> Drawn:
    """The images of an arm that no training changes, drawn once for a folder."""
    from dpdmd_studio.trainer.evaluation.evaluate import draw_timed

    kept = cache / f"{arm.name}-{'-'.join(map(str, facts))}.pt"
    if not kept.exists():
        torch.save(draw_timed(sampler, arm, material), kept)
    return torch.load(kept, weights_only=False)


def measures_of_files(
    teacher: str, students: Sequence[Path], cache: Path, steps: int = 4
) -> dict[str, dict[str, float]]:
    """Measures on held-out captions and seeds: the teacher, guided or not, and LoRA files."""
    from dpdmd_studio.core.lora.file import read_lora
    from dpdmd_studio.trainer.toys.shapes import caption_sample
    from easel import Easel, asset

    ways = {str(path): [(read_lora(path), 1.0)] for path in students}
    easel = Easel.of(teacher, caption_sample(held_out=True, count=CAPTIONS, seed=7), ways)
    facts = (asset(teacher).stem, True, easel.guidance_scale, CAPTIONS)
    guided = f"Teacher, {easel.teacher_steps} steps, guidance {easel.guidance_scale:g}"
    fixed = [
        easel.guided(guided),
        easel.arm(f"Teacher without guidance, {steps} steps", "teacher", steps),
    ]
    known = {
        arm.name: remembered(cache, facts, easel.sampler, arm, easel.material) for arm in fixed
    }
    return easel.measured([*fixed, *(easel.arm(name, name, steps) for name in ways)], known=known)


def measure_files(options: argparse.Namespace) -> None:
    """The same numbers for LoRA files that are there already, on held-out captions and seeds."""
    options.folder.mkdir(parents=True, exist_ok=True)
    measures = measures_of_files(options.teacher, options.students, options.folder)
    say(summary({"seconds": 0, "held_out": measures}))


def kept_of(measures: dict[str, dict[str, float]], arm: str) -> dict[str, float]:
    """An arm's numbers against the teacher's: what the targets speak of."""
    teacher, own = next(iter(measures.values())), measures[arm]
    names = [k for k in teacher if k.startswith("diversity_")]
    shares = [own[k] / teacher[k] for k in names]
    return {
        "diversity": mean(shares),
        "least": min(shares),
        "eq9": own["sample_diversity"] / teacher["sample_diversity"],
        "valid": own["valid"] - teacher["valid"],
        "adherence": own["adherence"] - teacher["adherence"],
        "distance": own["teacher_distance"],
    }


def summary(result: dict) -> str:
    """The student's and the baselines' line."""
    measures = result.get("held_out") or result["tuning"]
    lines = []
    for arm in list(measures)[1:]:
        kept = kept_of(measures, arm)
        lines.append(
            f"{arm}: diversity {kept['diversity']:.1%} (least {kept['least']:.1%}), Eq. 9 "
            f"{kept['eq9']:.1%}, valid {kept['valid']:+.1%}, adherence {kept['adherence']:+.1%}, "
            f"distance {kept['distance']:.4f}"
        )
    return f"{result['seconds']} s\n  " + "\n  ".join(lines)


def table(options: argparse.Namespace) -> None:
    """A markdown table of all runs in the folder: mean (worst) over training seeds."""
    rows: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for path in sorted(options.folder.glob("*/*/seed-*/result.json")):
        rows[path.parts[-4], path.parts[-3]].append(json.loads(path.read_text()))
    for part in ("tuning", "held_out"):
        print(f"\n### {part}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for (teacher, name), results in rows.items():
            found = [r for r in results if part in r]
            if found:
                print(row(teacher, name, [r[part] for r in found], found))


def row(teacher: str, name: str, measures: list[dict], results: list[dict]) -> str:
    """One line of the table."""
    kept = [kept_of(m, list(m)[-1]) for m in measures]

    def shown(key: str, form: str, worst) -> str:
        values = [k[key] for k in kept]
        text = format(mean(values), form)
        return text if len(values) == 1 else f"{text} ({format(worst(values), form)})"

    cells = [
        teacher,
        name,
        str(len(kept)),
        shown("diversity", ".1%", lambda v: max(v, key=lambda x: abs(x - 1))),
        shown("least", ".1%", min),
        shown("eq9", ".1%", lambda v: max(v, key=lambda x: abs(x - 1))),
        shown("valid", "+.1%", min),
        shown("adherence", "+.1%", min),
        shown("distance", ".4f", max),
        f"{mean(r['seconds'] for r in results):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def say(text: str) -> None:
    """To stderr, so that tables can be piped."""
    sys.stderr.write(text + "\n")


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("train", "measure", "table"))
    parser.add_argument("--students", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--name", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "table":
        return table(options)
    if options.command == "measure":
        return measure_files(options)
    for seed in options.seeds:
        done = options.folder / options.teacher / options.name / f"seed-{seed}" / "result.json"
        if not done.exists():
            train(options, seed)
    return None


if __name__ == "__main__":
    main()
