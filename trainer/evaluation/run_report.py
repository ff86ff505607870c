"""The report that a run ends in: what its student kept of its teacher, on held-out prompts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...app.report.report import write_report
from ...app.runs.directory import RunDirectory
from ...core.errors import NonFiniteError
from ...core.families import stated_credits
from ..device import is_out_of_memory
from ..training.session import Session
from .comparison import measured_report
from .evaluate import EvaluationSet, EvaluationStoppedError, evaluate
from .measures import MeasureSet
from .monitor import Monitor, measured_lines
from .run_evaluation import run_arms

log = logging.getLogger("dpdmd_studio.evaluation")
SHOWN_PROMPTS = 6
NOTES = (
    "Prompts and seeds of this page were never used in training.",
    "Diversity must be read beside the others: a broken image can be diverse, too.",
)


def write_run_report(
    session: Session, monitor: Monitor, lora: Path, measures: MeasureSet
) -> Path | None:
    """Path of the run's report.html, or None where none could be made; the log says why."""
    run = session.run
    try:
        teacher = monitor.teacher()
        settings = run_arms(session)
        arms = evaluate(
            monitor.sampler(),
            settings,
            monitor.material(),
            measures,
            known={settings[0].name: teacher},
        )
    except EvaluationStoppedError:
        log.info("Stopped before the report was done; the `compare` command makes one.")
        return None
    except NonFiniteError as error:
        log.warning("There is no report. %s", error)
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        log.info("There is no report: the device has too little memory to draw its images.")
        return None
    data = measured_report(
        arms,
        monitor.material(),
        measures,
        SHOWN_PROMPTS,
        title=f"{lora.stem}: what it kept of its teacher",
        subtitle=f"{session.teacher.name}, distilled into a {session.config.num_steps}-step LoRA.",
        facts=run_facts(session, monitor.material()),
        lora=lora.name,
        **run_history(session.run),
    )
    return write_report(run.report, data)


def run_facts(session: Session, material: EvaluationSet) -> dict[str, str]:
    """What a report says of how the student was made and measured."""
    config, credited = session.config, stated_credits(session.teacher.detection)
    return {
        "Checkpoint": f"{session.teacher.name} ({session.teacher.detection.title})",
        "Training": f"{session.trainer.step} student updates of {config.batch_size} images, "
        f"{config.fake_updates} fake-score updates each",
        "Anchor": f"{config.effective_anchor_step} of {config.effective_teacher_steps} guided "
        f"teacher steps, weight {config.diversity_weight:g}",
        "LoRA rank": str(config.student_rank),
        "Sample it with": session.recipe().plain_host,
        "Evaluation": f"{len(material.prompts)} held-out prompts, {len(material.seeds)} seeds each",
        "Machine": f"{session.call.device.type}, {torch.get_num_threads()} CPU threads",
        **({"Pictures it learned from": credited} if credited else {}),
    }


def run_history(run: RunDirectory) -> dict[str, Any]:
    """How the student learned: metrics with measurements, previews and notes of `ReportData`."""
    metrics = run.metrics()
    measured = ("step", "diversity_kept", "perceptual_distance", "teacher_distance")
    for line in measured_lines(run):
        metrics.append({key: line[key] for key in measured if key in line})
    previews = []
    for path in sorted(run.previews.glob("step-*.png")):
        with Image.open(path) as image:
            step = int(path.stem.removeprefix("step-"))
            previews.append((step, np.array(image.convert("RGB"))))
    return {"metrics": metrics, "previews": previews, "notes": NOTES}
