"""The demo: distil the embedded teacher and show, side by side, what the student kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...app.config.distill_config import DistillConfig
from ...app.config.presets import DEMO
from ...app.config.request import DistillRequest, ModelFiles
from ...app.report.report import write_report
from ...app.runs.directory import RunDirectory
from ...core.errors import OutputError, RunError
from ...core.images.seed_sheet import Row, seed_sheet
from ..device import choose_device, faster_dtype
from ..evaluation.comparison import Comparison, measured_report
from ..evaluation.evaluate import ArmSetting, EvaluationSet, ImageSampler, evaluate
from ..evaluation.run_evaluation import evaluation_set, run_arms, session_sampler
from ..evaluation.run_report import SHOWN_PROMPTS, run_facts, run_history
from ..toys.emoji.captions import world
from ..toys.emoji.counts import OPEN
from ..toys.worlds import WORLDS, measures_for
from ..training.loop import Progress
from .distill import Outcome, create_run, run_distillation

WORLD = WORLDS["emoji"]
TEACHER = Path(__file__).parents[1] / "assets" / "emoji-sd3.safetensors"
TRAINING_PROMPTS, NAMING_PROMPTS, OPEN_PROMPTS = 2000, 4, 12
EVALUATION_SEEDS = tuple(range(5_000_000, 5_000_024))
PICTURE_PROMPT, PICTURE_SEEDS = "bird", tuple(range(8))
"""Of the picture that shows all arms: fixed before any of it was drawn."""
PLAIN = "Plain DMD, 4 steps"
PLAIN_NOTE = "Distribution matching alone (no target prediction, no detach), with the same budget."
CONFIG = DistillConfig(**DEMO)
log = logging.getLogger("dpdmd_studio.commands")


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured."""

    comparison: Comparison
    lora: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {
            "report": str(self.comparison.report),
            "lora": str(self.lora),
            "seconds": self.seconds,
            "arms": self.comparison.arms,
        }

    def to_text(self) -> str:
        """A table for the terminal."""
        table, report = self.comparison.table(), self.comparison.report
        return f"{table}\nLoRA:   {self.lora}\nReport: {report}"


def evaluation_prompts() -> list[str]:
    """Held-out captions, most of which have many right answers: diversity is counted on these."""
    drawn, here = WORLD.captions(True, 4 * OPEN_PROMPTS, 0), world()
    wanted = {True: OPEN_PROMPTS, False: NAMING_PROMPTS}
    sides = {left: [t for t in drawn if (len(here.answers(t)) >= OPEN) == left] for left in wanted}
    return [text for left, count in wanted.items() for text in sides[left][:count]]


def run_demo(
    output: Path,
    *,
    steps: int | None,
    overwrite: bool,
    on_progress: Callable[[Progress], None],
    config: DistillConfig = CONFIG,
) -> DemoResult:
    """Distil the embedded teacher into `output`, compare, and write report.html there.

    Plain DMD is trained first, on the same prompts with the same budget, for the comparison alone.

    Raises:
        OutputError: `output` holds something already and `overwrite` is not set.
    """
    started = time.perf_counter()
    changes = {"dtype": faster_dtype(choose_device(config.device))} | (
        {"steps": steps} if steps else {}
    )
    config = DistillConfig.from_dict(config.to_dict() | changes)
    _make_folder(output, overwrite)
    held_out = evaluation_prompts()
    # the DMD gradient has to reach every step where none is anchored
    plain = replace(
        config, objective="dmd", gradient_steps="random", preview_every=0, evaluate_every=0
    )

    def trained(settings: DistillConfig, name: str) -> Outcome:
        run = _new_run(output, settings, name, held_out, overwrite)
        outcome = run_distillation(run, on_progress=on_progress, with_report=False)
        if not outcome.finished:
            raise RunError(
                f"The demo was stopped after {outcome.step} updates; nothing was compared. Its "
                f"LoRA is {outcome.lora}. Run it again with --overwrite for the whole demo."
            )
        return outcome

    log.info("Training plain DMD, to compare with")
    others = {PLAIN: trained(plain, "plain-dmd-4step").session.trainer.student_weights()}
    log.info("Training the DP-DMD student")
    outcome = trained(config, "emoji-dpdmd-4step")
    log.info("Comparing teacher and students on prompts and seeds that training never saw")
    session, measures = outcome.session, measures_for(outcome.session.checkpoint.path)
    material = evaluation_set(session, held_out, EVALUATION_SEEDS)
    sampler, settings = session_sampler(session, others), run_arms(session, {PLAIN: PLAIN_NOTE})
    arms = evaluate(sampler, settings, material, measures)
    picture = evaluation_set(session, [PICTURE_PROMPT], PICTURE_SEEDS)
    _draw_picture(output / "picture.png", sampler, settings, picture)
    seconds = time.perf_counter() - started
    data = measured_report(
        arms,
        material,
        measures,
        SHOWN_PROMPTS,
        title="DP-DMD Studio: the demo's result",
        subtitle="The embedded teacher, distilled from prompts alone into a 4-step LoRA.",
        facts=run_facts(session, material)
        | {"Whole demo": f"{seconds / 60:.1f} minutes, plain DMD included"},
        lora=outcome.lora.name,
        **run_history(session.run),
    )
    page = write_report(output, data)
    return DemoResult(Comparison.of(page, arms, measures), outcome.lora, seconds)


def _draw_picture(
    path: Path, sampler: ImageSampler, settings: Sequence[ArmSetting], material: EvaluationSet
) -> None:
    """One open prompt, a seed a column: each arm but the training-free baseline in a row."""
    rows = [
        Row(arm.name, f"{arm.evaluations} evaluations an image", sampler.draw(arm, material)[0])
        for arm in settings
        if len(arm.stages) == 1
    ]
    seed_sheet(rows, material.seeds).save(path)


def _make_folder(output: Path, overwrite: bool) -> None:
    if (output / "report.html").exists() and not overwrite:
        raise OutputError(
            f"{output} holds an earlier demo's report. Add --overwrite to replace it, or name "
            "another folder with --output."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {output} cannot be made: {error}.") from error


def _new_run(
    output: Path, config: DistillConfig, name: str, held_out: list[str], overwrite: bool
) -> RunDirectory:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(TEACHER)),
        config=config,
        output=str(output / f"{name}.safetensors"),
        overwrite=overwrite,
        created_at=time.time(),
    )
    prompts = WORLD.captions(False, TRAINING_PROMPTS, config.seed)
    folder = output / ("run" if config.objective == "dp_dmd" else "run-plain-dmd")
    return create_run(folder, request, prompts, overwrite=overwrite, evaluation_prompts=held_out)
