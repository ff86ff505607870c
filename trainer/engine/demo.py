"""The demo: distil the embedded teacher and show, side by side, what the student kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...core.errors import OutputError, RunError
from ..config import DistillConfig
from ..request import DistillRequest, ModelFiles
from .comparison import measures_by_arm, measures_table
from .evaluate import evaluate
from .loop import Progress
from .picture_features import layout_features
from .picture_measures import MeasureSet, feature_measures, shapes_measures
from .report import Arm, ReportData, write_report
from .run_evaluation import evaluation_set, run_arms, session_painter
from .runner import Outcome, create_run, run_distillation
from .session import Session
from .shapes import caption_sample

TEACHER = Path(__file__).parents[1] / "assets" / "shapes-sd3.safetensors"
TRAINING_PROMPTS, EVALUATION_PROMPTS = 2000, 40
EVALUATION_SEEDS = tuple(range(5_000_000, 5_000_008))
SHOWN_PROMPTS = 6
CONFIG = DistillConfig(
    steps=300,
    batch_size=16,
    student_rank=32,
    fake_rank=32,
    student_lr=1e-3,
    fake_lr=1e-3,
    save_every=100,
    preview_every=50,
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured."""

    report: Path
    lora: Path
    seconds: float
    arms: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return asdict(self) | {"report": str(self.report), "lora": str(self.lora)}

    def to_text(self) -> str:
        """A table for the terminal."""
        measures = demo_measures()
        table = measures_table(self.arms, measures.labels, measures.units)
        return f"{table}\nLoRA:   {self.lora}\nReport: {self.report}"


def demo_measures() -> MeasureSet:
    """Exact counts, and the paper's diversity with the built-in feature."""
    return shapes_measures() + feature_measures(layout_features())


def run_demo(
    output: Path,
    *,
    steps: int | None,
    overwrite: bool,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    config: DistillConfig = CONFIG,
) -> DemoResult:
    """Distil the embedded teacher into `output`, compare, and write report.html there.

    Raises:
        OutputError: `output` holds something already and `overwrite` is not set.
    """
    started = time.perf_counter()
    values = config.to_dict() | ({"steps": steps} if steps else {})
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(TEACHER)),
        config=DistillConfig.from_dict(values),
        output=str(output / "shapes-dpdmd-4step.safetensors"),
        overwrite=overwrite,
        created_at=time.time(),
    )
    if (output / "report.html").exists() and not overwrite:
        raise OutputError(
            f"{output} holds an earlier demo's report. Add --overwrite to replace it, or name "
            "another folder with --output."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {output} cannot be made: {error}.") from error
    prompts = caption_sample(held_out=False, count=TRAINING_PROMPTS, seed=request.config.seed)
    run = create_run(output / "run", request, prompts, overwrite=overwrite)
    outcome = run_distillation(run, report=report, on_progress=on_progress)
    if not outcome.finished:
        raise RunError(
            f"The demo was stopped after {outcome.step} updates; nothing was compared. Its LoRA is "
            f"{outcome.lora}. Run it again with --overwrite for the whole demo."
        )
    report("Comparing teacher and student on prompts and seeds that training never saw")
    arms = compare(outcome.session, report)
    seconds = time.perf_counter() - started
    page = write_report(output, _report_data(outcome, arms, seconds))
    return DemoResult(page, outcome.lora, seconds, measures_by_arm(arms))


def compare(session: Session, report: Callable[[str], None]) -> list[Arm]:
    """All arms on held-out captions and on seeds that training never uses."""
    captions = caption_sample(held_out=True, count=EVALUATION_PROMPTS, seed=0)
    return evaluate(
        session_painter(session),
        run_arms(session),
        evaluation_set(session, captions, EVALUATION_SEEDS, report),
        demo_measures(),
        report,
    )


def _report_data(outcome: Outcome, arms: list[Arm], seconds: float) -> ReportData:
    session = outcome.session
    config, recipe = session.config, session.recipe()
    facts = {
        "Checkpoint": f"{session.teacher.name} ({session.teacher.detection.title})",
        "Training": f"{outcome.step} student updates of {config.batch_size} pictures, "
        f"{config.fake_updates} fake-score updates each",
        "Anchor": f"{config.effective_anchor_step} of {config.effective_teacher_steps} guided "
        f"teacher steps, weight {config.diversity_weight:g}",
        "LoRA rank": str(config.student_rank),
        "Sample it with": recipe.plain_host,
        "Evaluation": f"{EVALUATION_PROMPTS} held-out prompts, {len(EVALUATION_SEEDS)} seeds each",
        "Whole demo": f"{seconds / 60:.1f} minutes on {session.call.device.type}, "
        f"{torch.get_num_threads()} threads",
    }
    measures = demo_measures()
    shown = [Arm(**{**vars(arm), "pictures": arm.pictures[:SHOWN_PROMPTS]}) for arm in arms]
    return ReportData(
        title="DP-DMD Studio: the demo's result",
        subtitle="The embedded teacher, distilled from prompts alone into a 4-step LoRA.",
        facts=facts,
        prompts=caption_sample(held_out=True, count=EVALUATION_PROMPTS, seed=0)[:SHOWN_PROMPTS],
        seeds=list(EVALUATION_SEEDS),
        arms=shown,
        metrics=session.run.metrics(),
        measure_labels=measures.labels,
        measure_units=measures.units,
        notes=[
            "Prompts and seeds of this page were never used in training.",
            "Diversity must be read beside the other two: a broken picture can be diverse, too.",
        ],
        lora=str(outcome.lora.name),
    )
