"""A student beside a style LoRA, and on a fine-tune of its teacher, against one distilled there.

    python benchmarks/emoji_finetunes.py --folder F --cache CACHE [--seeds 0]

On the flow emoji teacher. The style LoRA has seen pictures of one style under captions that say
none; the fine-tune, a LoRA of higher rank that is merged at 1, has seen those of another for
longer. Both are trained by flow matching on the pinned pictures (CACHE, as make_emoji_teacher.py
fetches them). Then students with the defaults for full-size checkpoints: of the teacher, and of the
fine-tune. Counted on held-out captions that say no style; "its style" is the share of valid images
in the style that was learned, "distance" is to the images of the 28 guided steps above. What is in
the folder is not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import emoji_students
import mounting
import numpy as np
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.library.home import prompt_cache
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands import demo
from dpdmd_studio.trainer.commands.distill import create_run, prepare, run_distillation
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation.evaluate import ArmSetting, EvaluationSet, draw_timed
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.toys.emoji import captions
from dpdmd_studio.trainer.toys.emoji.counts import OPEN, emoji_measures
from dpdmd_studio.trainer.toys.emoji.judging import judge
from dpdmd_studio.trainer.toys.worlds import image_measures
from dpdmd_studio.trainer.training.batches import Batch
from dpdmd_studio.trainer.training.gradients import Samples
from easel import Easel, asset, say
from safetensors.torch import load_file, save_file

sys.path.append(str(mounting.ROOT / "tools"))

BATCH, SCENES = 64, 1024
KINDS = {"names": (40, 8), "open": (12, 32)}


@dataclass(frozen=True)
class Learned:
    """What a LoRA of pictures is trained on, and how."""

    style: str
    rank: int
    updates: int


STYLE, FINE_TUNE = Learned("3d", 16, 250), Learned("noto", 64, 500)


def latents_of(cache: Path, style: str) -> tuple[list[str], torch.Tensor]:
    """Captions that say no style, and latents of scenes in that style."""
    from emoji import autoencoder, drawing, pictures, shipped
    from emoji import world as worlds

    drawer = drawing.Drawer(pictures.render(cache, worlds.selection(cache)), 64)
    codec = autoencoder.Taesd().eval().requires_grad_(False)
    shipped.fill_autoencoder(codec)
    source, said, scenes = random.Random(f"scenes-{style}"), [], []
    while len(scenes) < SCENES:
        scene = replace(captions.random_scene(source), style=style)
        if (scene.name, style) in drawer.index:
            scenes.append(scene)
            plain = replace(captions.random_said(scene, source), style="")
            said.append("" if source.random() < 0.1 else plain.caption(source.randrange(3)))
    images = drawer.draw(scenes, source, captions.world().backgrounds)
    return said, torch.cat([codec.encode(part) for part in images.split(BATCH)])


def learn(path: Path, cache: Path, what: Learned) -> None:
    """Train a LoRA on pictures: the fake score's loss, on them in place of a student's samples."""
    if path.exists():
        return
    said, latents = latents_of(cache, what.style)
    changes = {
        "steps": what.updates, "batch_size": BATCH, "fake_rank": what.rank,
        "student_rank": what.rank, "fake_lr": 1e-3, "dtype": "bfloat16",
    }  # fmt: skip
    config = emoji_students.settings_of([f"{k}={v}" for k, v in changes.items()], 0, "full-size")
    request = emoji_students.request_of("sd3", config, path.parent)
    run = create_run(path.with_suffix(".run"), request, ["owl"] * 4, overwrite=True)
    prepare(run)
    session = open_session(run)
    encoded = encode_prompts(session.checkpoint, [*set(said), ""], clip_skip=1,
                             cache_folder=prompt_cache())  # fmt: skip
    trainer, source = session.trainer, torch.Generator().manual_seed(0)
    for update in range(1, what.updates + 1):
        rows = torch.randint(len(said), (BATCH,), generator=source)
        conditional = Conditioning.cat([encoded[said[row]] for row in rows.tolist()])
        batch = Batch(latents[rows], PromptPair.of(conditional, encoded[""]))
        found = trainer._fake_update(Samples(latents[rows], batch), update, 0)
        if update % 50 == 0:
            say(f"{path.stem}: update {update}, loss {float(found['fake_loss']):.4f}")
    written = path.with_suffix(".recipe")
    session.write_lora(written, overwrite=True, weights=session.roles.state("fake"))
    save_file(load_file(written), path)  # no recipe: it is no few-step LoRA
    written.unlink()


def distil(path: Path, seed: int, fine_tune: Path | None = None) -> None:
    """A student with the defaults, of the teacher or of what a LoRA merged at 1 makes of it."""
    if path.exists():
        return
    config: DistillConfig = emoji_students.settings_of(["dtype=bfloat16"], seed, "full-size")
    merged = (TeacherLora(path=str(fine_tune)),) if fine_tune else ()
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(asset("sd3"))),
        config=config,
        output=str(path),
        teacher_loras=merged,
        overwrite=True,
    )
    prompts = captions.caption_sample(False, demo.TRAINING_PROMPTS, seed)
    run = create_run(path.with_suffix(".run"), request, prompts, overwrite=True)
    if not run_distillation(run, on_progress=lambda _: None, with_report=False).finished:
        raise SystemExit(f"{run.path} was stopped; nothing is counted.")


def texts_of(kind: str) -> list[str]:
    """Held-out captions that say no style; "open" ones leave ten names open or more."""
    here, count = captions.world(), KINDS[kind][0]
    wanted = [t for t in captions.caption_sample(True, 400, 7) if not here.parse(t).style]
    is_open = {text: len(here.answers(text)) >= OPEN for text in wanted}
    return [text for text in wanted if is_open[text] == (kind == "open")][:count]


def style_share(rows: Sequence[Sequence[np.ndarray]], style: str) -> float:
    """Share of valid images in a style."""
    verdicts = [v for row in rows for v in judge().verdicts(np.stack(row)) if v.name]
    return mean(v.style == style for v in verdicts)


def counted(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Every line's counts of one training seed."""
    parts = {
        "style": [(folder / "style.safetensors", 0.8)],
        "fine-tune": [(folder / "fine-tune.safetensors", 1.0)],
        "student": [(folder / f"student-{seed}.safetensors", 1.0)],
        "there": [(folder / f"there-{seed}.safetensors", 1.0)],
    }
    parts["style, student"] = parts["student"] + parts["style"]
    parts["fine-tune, student"] = parts["student"] + parts["fine-tune"]
    parts["fine-tune, there"] = parts["there"] + parts["fine-tune"]
    loras = {k: [(read_lora(file), s) for file, s in v] for k, v in parts.items()}
    found: dict[str, dict[str, float]] = {}
    for kind, (_, seeds) in KINDS.items():
        texts, measures = texts_of(kind), emoji_measures() + image_measures()
        easel, first = Easel.of("sd3", texts, loras), emoji_students.FIRST_SEED[True]
        material = EvaluationSet(
            easel.material.prompts, easel.material.conditioning, range(first, first + seeds)
        )

        def guided(weights: str, easel: Easel = easel) -> ArmSetting:
            arm = easel.guided(weights)
            return replace(arm, stages=(replace(arm.stages[0], weights=weights),))

        groups = {
            ("the teacher", ""): [guided("teacher"), easel.few("4 steps, no guidance"),
                                  easel.few("its student", "student")],
            ("style LoRA at .8", STYLE.style): [
                guided("style"), easel.few("4 steps, no guidance", "style"),
                easel.few("with the teacher's student", "style, student")],
            ("fine-tune", FINE_TUNE.style): [
                guided("fine-tune"), easel.few("4 steps, no guidance", "fine-tune"),
                easel.few("with the teacher's student", "fine-tune, student"),
                easel.few("with a student distilled there", "fine-tune, there")],
        }  # fmt: skip
        for (title, style), arms in groups.items():
            teacher = draw_timed(easel.sampler, arms[0], material).images
            for arm in arms:
                images = teacher
                if arm is not arms[0]:
                    images = draw_timed(easel.sampler, arm, material).images
                name = f"{title}: {'28 guided steps' if arm is arms[0] else arm.name}"
                line = measures(texts, images, teacher)
                if style:
                    line["its style"] = style_share(images, style)
                found.setdefault(name, {}).update({f"{kind} {k}": v for k, v in line.items()})
    return found


COLUMNS = {
    "valid": ("names valid", ".1%"),
    "as asked": ("names adherence", ".1%"),
    "its style": ("names its style", ".1%"),
    "right, open": ("open adherence", ".1%"),
    "distinct": ("open diversity", ".1f"),
    "Eq. 9": ("open efficientnet_diversity", ".4f"),
    "distance": ("open efficientnet_distance", ".4f"),
}


def main() -> None:
    """Train and count what is missing, and print means over the training seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    learn(folder / "style.safetensors", options.cache, STYLE)
    learn(folder / "fine-tune.safetensors", options.cache, FINE_TUNE)
    runs = []
    for seed in options.seeds:
        distil(folder / f"student-{seed}.safetensors", seed)
        distil(folder / f"there-{seed}.safetensors", seed, folder / "fine-tune.safetensors")
        if not (folder / f"{seed}.json").exists():
            (folder / f"{seed}.json").write_text(json.dumps(counted(folder, seed), indent=1))
        runs.append(json.loads((folder / f"{seed}.json").read_text()))
    print(f"| | {' | '.join(COLUMNS)} |\n|{' --- |' * (1 + len(COLUMNS))}")
    for name in runs[0]:
        cells = [
            format(mean(run[name].get(key, float("nan")) for run in runs), form)
            for key, form in COLUMNS.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
