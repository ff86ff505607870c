"""Whether long training under strong guidance costs diversity on the embedded flow teacher.

    python benchmarks/collapse/shapes.py --folder F

Three times the teacher's own guidance, three times the demo's updates in batches of four. Plain DMD
is trained at each learning rate of RATES; all other objectives use the one at which plain DMD ends
nearer to its teacher on captions of training. What is reported is measured on captions and seeds
that nothing has seen, at five points of the training. Runs in the folder are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mounting
import torch
from collapse_pages import COLOURS, NAMES, rounded
from easel import Easel, asset, diversity_against, say

TEACHER, GUIDANCE, UPDATES, BATCH, POINTS, SEED = "sd3", 6.0, 600, 4, 5, 0
RATES = (3e-4, 1e-3)
CAPTIONS = 40
OBJECTIVES: dict[str, dict] = {name: {"objective": objective} for objective, name in NAMES.items()}
SHOWN = (
    ("diversity", "diversity kept", ".1%"),
    ("least", "least attribute", ".1%"),
    ("eq9", "Eq. 9 kept", ".1%"),
    ("valid", "clean", ".1%"),
    ("teacher_distance", "distance", ".4f"),
)


def trained(folder: Path, name: str, rate: float, updates: int) -> list[tuple[int, Path]]:
    """The students of one run by update, loadable; trains it if it is not there."""
    from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
    from dpdmd_studio.trainer.commands.demo import CONFIG, TRAINING_PROMPTS
    from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
    from dpdmd_studio.trainer.toys.shapes import caption_sample

    place = folder / f"{name.replace(' ', '_').replace(',', '')}-{rate:g}-{updates}"
    output = place / "student.safetensors"
    if not output.exists():
        place.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        plain = {"num_anchored_steps": 1, "gradient_steps": "random"}
        settings = {
            "steps": updates,
            "batch_size": BATCH,
            "teacher_guidance": GUIDANCE,
            "student_lr": rate,
            "fake_lr": rate,
            "seed": SEED,
            "keep": "last",
            "save_every": updates // POINTS,
            "preview_every": 0,
            "evaluate_every": 0,
        }
        config = replace(CONFIG, **(plain | settings | OBJECTIVES[name]))
        request = DistillRequest(
            model=ModelFiles(checkpoint=str(asset(TEACHER))), config=config, output=str(output)
        )
        prompts = caption_sample(held_out=False, count=TRAINING_PROMPTS, seed=SEED)
        run = create_run(place / "run", request, prompts, overwrite=True)
        run_distillation(run, report=lambda _: None, on_progress=lambda _: None)
        say(f"{name} at {rate:g}: {time.perf_counter() - started:.0f} s")
    files = sorted((place / "run" / "checkpoints").glob("step-*.safetensors"))
    return [(int(file.stem.split("-")[1]), file) for file in files]


def measured(students: dict[str, Path], *, held_out: bool, seed: int) -> dict[str, dict]:
    """Measures of the guided teacher, the bare teacher and LoRA files, by name."""
    from dpdmd_studio.core.lora.file import read_lora
    from dpdmd_studio.trainer.toys.shapes import caption_sample

    captions = caption_sample(held_out=held_out, count=CAPTIONS, seed=seed)
    ways = {name: [(read_lora(path), 1.0)] for name, path in students.items()}
    easel = replace(Easel.of(TEACHER, captions, ways), guidance_scale=GUIDANCE)
    arms = [easel.guided("teacher"), easel.arm("bare teacher", "teacher")]
    found = easel.measured([*arms, *(easel.arm(name, name) for name in ways)])
    for own in found.values():
        shares = diversity_against(own, found["teacher"])
        own["diversity"], own["least"] = mean(shares), min(shares)
        own["eq9"] = own["sample_diversity"] / found["teacher"]["sample_diversity"]
    return found


def report(found: dict[str, dict], rate: float, tuning: dict[str, float], updates: int) -> str:
    """Markdown: the ends, and each objective's way there."""
    every = [updates * (i + 1) // POINTS for i in range(POINTS)]
    head = [f"| objective | {' | '.join(title for _, title, _ in SHOWN)} |",
            f"|{' --- |' * (len(SHOWN) + 1)}"]  # fmt: skip

    def row(label: str, name: str) -> str:
        return f"| {label} | {' | '.join(format(found[name][k], f) for k, _, f in SHOWN)} |"

    lines = [
        "# Long training under strong guidance on the embedded flow teacher",
        "",
        f"`python benchmarks/collapse/shapes.py --folder F`, torch "
        f"{torch.__version__.split('+')[0]} on a server CPU, one thread; guidance {GUIDANCE:g}, "
        f"{updates:,} updates of {BATCH}, training seed {SEED}, learning rate {rate:g} "
        f"(distance of plain DMD on training captions: "
        f"{', '.join(f'{r}: {d:.4f}' for r, d in tuning.items())}).",
        f"{CAPTIONS} held-out captions, nine seeds each; shares are of the teacher at 30 steps "
        "with the same guidance.",
        "",
        *head,
        *(row(name, name) for name in ("teacher", "bare teacher")),
        *(row(name, f"{name} {every[-1]}") for name in OBJECTIVES),
        "",
        "Diversity kept, and Eq. 9 kept, over training:",
        "",
        f"| objective | {' | '.join(f'{step:,} updates' for step in every)} |",
        f"|{' --- |' * (POINTS + 1)}",
    ]
    for name in OBJECTIVES:
        cells = [f"{found[f'{name} {s}']['diversity']:.1%} / {found[f'{name} {s}']['eq9']:.1%}"
                 for s in every]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![Curves](collapse-shapes.svg)", ""])


def curves(found: dict[str, dict], updates: int) -> str:
    """Diversity and share of clean pictures over updates as an SVG."""
    every = [updates * (i + 1) // POINTS for i in range(POINTS)]
    colours = dict(zip(OBJECTIVES, COLOURS.values(), strict=True))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 330" '
             'font-family="sans-serif" font-size="11" fill="#444">',
             '<rect width="100%" height="100%" fill="#fff"/>']  # fmt: skip
    for place, (name, colour) in enumerate(colours.items()):
        x, y = 34 + 220 * (place % 3), 14 + 16 * (place // 3)
        parts.append(f'<rect x="{x}" y="{y - 6}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{name}</text>')
    for column, (key, title) in enumerate((("eq9", "Eq. 9 kept"), ("valid", "clean pictures"))):
        left, width, top, height = 50 + 350 * column, 290, 60, 230
        lines = {n: [found["bare teacher"][key]] + [found[f"{n} {s}"][key] for s in every]
                 for n in OBJECTIVES}  # fmt: skip
        values = [v for line in lines.values() for v in line] + [found["teacher"][key]]
        low, span = min(values), (max(values) - min(values)) or 1.0

        def y_of(value: float, low=low, span=span, top=top, height=height) -> float:
            return top + height * (1 - (value - low) / span)

        parts.append(f'<text x="{left}" y="{top - 10}">{title}</text>')
        parts += [f'<text x="{left - 40}" y="{y_of(v) + 4:.1f}">{v:.1%}</text>'
                  for v in (low, low + span)]  # fmt: skip
        dashed = y_of(found["teacher"][key])
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{dashed:.1f}" y2="{dashed:.1f}" '
                     'stroke="#888" stroke-dasharray="4 3"/>')  # fmt: skip
        for name, line in lines.items():
            points = " ".join(f"{left + i * width / POINTS:.1f},{y_of(v):.1f}"
                              for i, v in enumerate(line))  # fmt: skip
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" '
                         'stroke-width="1.8"/>')  # fmt: skip
        parts.append(f'<text x="{left}" y="{top + height + 18}">0 to {updates:,} updates</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=mounting.ROOT / "benchmarks" / "results")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"a multiple of {POINTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, updates = options.folder, options.updates
    plain = {f"{rate:g}": trained(folder, NAMES["dmd"], rate, updates)[-1][1] for rate in RATES}
    tried = measured(plain, held_out=False, seed=9)
    tuning = {name: tried[name]["teacher_distance"] for name in plain}
    rate = float(min(tuning, key=lambda name: tuning[name]))
    students = {
        f"{name} {step}": file
        for name in OBJECTIVES
        for step, file in trained(folder, name, rate, updates)
    }
    found = measured(students, held_out=True, seed=7)
    options.results.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(rounded({"rate": rate, "tuning": tuning, "measures": found}))
    (options.results / "collapse-shapes.json").write_text(numbers + "\n", encoding="utf-8")
    (options.results / "collapse-shapes.svg").write_text(curves(found, updates), encoding="utf-8")
    text = report(found, rate, tuning, updates)
    (options.results / "collapse-shapes.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
