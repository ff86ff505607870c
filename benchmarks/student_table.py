"""One student at other steps, at other strengths, and together with a style LoRA.

    python benchmarks/student_table.py STUDENT.safetensors --style hues-sd3.safetensors

A markdown table against the teacher at its own guided steps, on held-out captions and seeds that
nothing was tuned on. `benchmarks/style_lora.py make` makes the style.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.toys.shapes import caption_sample
from easel import Easel, diversity_against
from style_lora import style_measure

STEPS, STRENGTHS, CAPTIONS = (2, 4, 6, 8), (1.0, 0.75, 0.5), 40
HEAD = (
    "| | steps | clean | as the prompt says | diversity kept | Eq. 9 kept | distance | style |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def rows(easel: Easel, names: list[tuple[str, str]], first: str) -> list[str]:
    """A line for the guided `first` weights and one for each (name, weights) and steps."""
    arms = [easel.guided("teacher", first)]
    keys = [("teacher, guided", easel.teacher_steps)]
    for name, weights in names:
        for steps in STEPS:
            arms.append(easel.arm(f"{name} {steps}", weights, steps))
            keys.append((name, steps))
    found = list(easel.measured(arms, style_measure()).values())
    lines = []
    for (name, steps), own in zip(keys, found, strict=True):
        shares = diversity_against(own, found[0])
        cells = [
            f"{own['valid']:.1%}",
            f"{own['adherence']:.1%}",
            f"{sum(shares) / len(shares):.1%}",
            f"{own['sample_diversity'] / found[0]['sample_diversity']:.1%}",
            f"{own['teacher_distance']:.4f}",
            f"{own['style']:.1%}",
        ]
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--style", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    student = read_lora(options.student)
    ways = {f"{strength:g}": [(student, strength)] for strength in STRENGTHS}
    if options.style:
        style = read_lora(options.style)
        ways |= {"both": [(student, 1.0), (style, 1.0)], "style": [(style, 1.0)]}
    captions = caption_sample(held_out=True, count=CAPTIONS, seed=5)
    easel = Easel.of(options.teacher, captions, ways)
    named = [("bare teacher", "teacher")]
    named += [(f"student at {strength:g}", f"{strength:g}") for strength in STRENGTHS]
    print(HEAD, *rows(easel, named, "teacher"), sep="\n")
    if options.style:
        print("\nAgainst the teacher with the style on:\n")
        styled = [("style alone, bare", "style"), ("student and style", "both")]
        print(HEAD, *rows(easel, styled, "style"), sep="\n")


if __name__ == "__main__":
    main()
