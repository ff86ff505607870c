"""A style LoRA with a countable style, and whether students of a styled teacher keep it.

    python benchmarks/style_lora.py make --folder F       # a LoRA that shifts every said colour
    python benchmarks/style_lora.py run --folder F        # distil with it merged, and measure
    python benchmarks/style_lora.py run --folder F --plain STUDENT.safetensors

The LoRA is trained without pictures: told "a red circle" it learns what its teacher draws for "an
orange circle", and so on round the six hues. Captions and seeds of the measurement are held out.
`--plain` adds the usual way, a student of the plain teacher with the style put on top.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.core.diffusion.prediction import training_target
from dpdmd_studio.core.diffusion.schedule import NUM_LEVELS, Levels, trailing_positions
from dpdmd_studio.core.files.atomic_write import write_text
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.core.lora.layout import lora_tensors
from dpdmd_studio.core.lora.math import LoraPair
from dpdmd_studio.trainer.commands.demo import CONFIG, TRAINING_PROMPTS
from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
from dpdmd_studio.trainer.evaluation.measures import MeasureSet, Rows
from dpdmd_studio.trainer.evaluation.sampling import sample_latents
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.model.roles import AdapterRoles
from dpdmd_studio.trainer.toys.measures import adherence, measure
from dpdmd_studio.trainer.toys.shapes import COLOURS, caption_sample, parse_caption
from easel import Easel, asset, diversity_against, say
from safetensors.torch import save_file

HUES = tuple(COLOURS)
STRENGTH = 1.0
UPDATES_OF_RUN = 300
CAPTIONS, POOL, POOL_STEPS, UPDATES, BATCH, RANK, RATE = 40, 1200, 12, 600, 32, 16, 1e-3


def shifted(caption: str) -> str:
    """The caption with its colour moved on by one hue; unchanged where it says none."""
    colour = parse_caption(caption).get("colour")
    if colour is None:
        return caption
    new = HUES[(HUES.index(colour) + 1) % len(HUES)]
    text = re.sub(rf"\b{colour}\b", new, caption)
    return re.sub(r"^an? (\w)", lambda m: f"{'an' if m[1] in 'aeiou' else 'a'} {m[1]}", text)


def make(folder: Path, teacher: str, updates: int) -> Path:
    """Train the hue-shifting LoRA and write it as other trainers do."""
    path = folder / f"hues-{teacher}.safetensors"
    if path.exists():
        return path
    torch.manual_seed(0)
    captions = caption_sample(held_out=False, count=POOL, seed=11)
    easel = Easel.of(teacher, [*captions, *map(shifted, captions)], {})
    call, network = easel.painter.call, easel.checkpoint.network
    told, meant = easel.material.conditioning[: len(captions)], easel.material.conditioning[POOL:]
    latents = drawn(easel, meant)
    facts = easel.checkpoint
    targets = facts.family.lora_modules(facts.config, "attention")
    roles = AdapterRoles(network, targets, student_rank=RANK, fake_rank=1, seed=0)
    optimizer = torch.optim.AdamW(roles.parameters("student"), lr=RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    levels = Levels.at_positions(call.schedule, torch.arange(NUM_LEVELS, dtype=torch.float64))
    started = time.perf_counter()
    for update in range(updates):
        rows = torch.randint(len(captions), (BATCH,)).tolist()
        level = levels[torch.randint(NUM_LEVELS, (BATCH,))]
        alpha, std = level.broadcast_scales
        x0, eps = latents[rows], torch.randn(BATCH, *latents.shape[1:])
        x_t = alpha * x0 + std * eps
        roles.use("teacher")
        with torch.no_grad():
            wanted = call(x_t, level.timesteps, joined(meant, rows))
        roles.use("student")
        output = call(x_t, level.timesteps, joined(told, rows))
        scale = training_target(call.prediction, x0, eps, alpha, std).square().mean()
        loss = (output - wanted).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if update % 100 == 99:
            say(f"{update + 1} updates, {time.perf_counter() - started:.0f} s, loss {loss:.4f}")
    weights = roles.state("student")
    modules = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    pairs = {m: LoraPair(weights[f"{m}.lora_A"], weights[f"{m}.lora_B"]) for m in modules}
    tensors = lora_tensors(facts.family, facts.config, pairs, torch.float32, "kohya")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def joined(conditioning: tuple[Conditioning, ...], rows: list[int]) -> Conditioning:
    """The conditioning of these captions as one batch."""
    return Conditioning.cat([conditioning[row] for row in rows])


def drawn(easel: Easel, conditioning: tuple[Conditioning, ...]) -> torch.Tensor:
    """One latent of the teacher per caption, (B, C, h, w)."""
    schedule = easel.checkpoint.schedule
    sigmas = Levels.at_positions(schedule, trailing_positions(POOL_STEPS)).sigmas
    parts = []
    for first in range(0, len(conditioning), BATCH):
        part = conditioning[first : first + BATCH]
        parts.append(
            sample_latents(
                easel.painter.call,
                Conditioning.cat(list(part)),
                easel.painter.negative,
                range(8_000_000 + first, 8_000_000 + first + len(part)),
                easel.painter.latent_shape,
                sigmas,
                guidance_scale=easel.guidance_scale,
            )
        )
    return torch.cat(parts)


def distilled(folder: Path, teacher: str, style: Path) -> tuple[Path, Path]:
    """The student of the styled teacher, without and with the style in its file: one run."""
    apart, included = (folder / f"student-{teacher}-{how}.safetensors"
                       for how in ("apart", "included"))  # fmt: skip
    if apart.exists():
        return apart, included
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(asset(teacher))),
        config=replace(CONFIG, steps=UPDATES_OF_RUN, keep="last"),
        output=str(included),
        overwrite=True,
        teacher_loras=(TeacherLora(path=str(style), strength=STRENGTH),),
        include_teacher_loras=True,
    )
    prompts = caption_sample(held_out=False, count=TRAINING_PROMPTS, seed=0)
    folder_of_run = folder / f"student-{teacher}-run"
    run = create_run(folder_of_run, request, prompts, overwrite=True)
    session = run_distillation(run, report=lambda _: None, on_progress=lambda _: None).session
    merged = tuple(replace(lora, included=False) for lora in session.teacher.merged_loras)
    bare = replace(session, included=None, teacher=replace(session.teacher, merged_loras=merged))
    bare.write_lora(apart, overwrite=True)
    return apart, included


def style_measure() -> MeasureSet:
    """How many pictures follow the caption as the style means it."""

    def follows(prompts, rows: Rows, teacher: Rows) -> dict[str, float]:
        pairs = [(shifted(p), measure(pic)) for p, row in zip(prompts, rows, strict=True)
                 for pic in row]  # fmt: skip
        return {"style": sum(adherence(text, seen) for text, seen in pairs) / len(pairs)}

    return MeasureSet((follows,), {"style": ("Follows style", "")}, {})


def run(folder: Path, teacher: str, plain: Path | None) -> str:
    """Distil with the style merged and measure all ways of drawing with it; a markdown table."""
    style = read_lora(make(folder, teacher, UPDATES))
    apart, included = map(read_lora, distilled(folder, teacher, style.path))
    captions = [c for c in caption_sample(held_out=True, count=4 * CAPTIONS, seed=3)
                if "colour" in parse_caption(c)][:CAPTIONS]  # fmt: skip
    ways = {
        "styled": [(style, STRENGTH)],
        "apart": [(apart, 1.0), (style, STRENGTH)],
        "included": [(included, 1.0)],
        "without": [(apart, 1.0)],
    }
    if plain:
        ways |= {"plain": [(read_lora(plain), 1.0), (style, STRENGTH)]}
    easel = Easel.of(teacher, captions, ways)
    arms = [
        easel.guided(f"styled teacher, {easel.teacher_steps} guided steps", "styled"),
        easel.guided(f"plain teacher, {easel.teacher_steps} guided steps"),
        easel.arm("styled teacher, 4 bare steps", "styled"),
        easel.arm("student of the styled teacher, style beside it", "apart"),
        easel.arm("the same with the style included in its file", "included"),
        easel.arm("student of the styled teacher, style left out", "without"),
    ]
    if plain:
        arms.append(easel.arm("student of the plain teacher, style on top", "plain"))
    found = easel.measured(arms, style_measure())
    write_text(folder / f"style-{teacher}.json", json.dumps(found, indent=1))
    return table(found)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a line per way of drawing."""
    teacher = next(iter(found.values()))
    lines = ["| | colours as the style has them | as the prompt says | clean | diversity kept |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, own in found.items():
        shares = diversity_against(own, teacher)
        cells = [f"{own[key]:.1%}" for key in ("style", "adherence", "valid")]
        kept = sum(shares) / len(shares)
        lines.append(f"| {name} | {' | '.join(cells)} | {kept:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("make", "run"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", choices=("sd3", "sd1"), default="sd3")
    parser.add_argument("--plain", type=Path, help="a student of the plain teacher")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.command == "make":
        say(f"wrote {make(options.folder, options.teacher, UPDATES)}")
    else:
        print(run(options.folder, options.teacher, options.plain))


if __name__ == "__main__":
    main()
