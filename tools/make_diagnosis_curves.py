"""Writes the curves that tests of the diagnosis look at: short runs of the embedded flow teacher.

    python tools/make_diagnosis_curves.py [FOLDER]

Trains a healthy run, one with learning rates 100 times too high, and one whose fake score hardly
learns, in a few minutes on two cores, and writes tests/goldens/diagnosis-curves.json with three
digits of each number. FOLDER keeps the runs; one that is there already is read, not trained again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.runs.directory import EVALUATIONS, RunDirectory
from dpdmd_studio.cli.console import shown_by
from dpdmd_studio.trainer.commands.demo import CONFIG
from dpdmd_studio.trainer.commands.distill import create_run, run_distillation
from dpdmd_studio.trainer.toys.emoji.captions import caption_sample

TEACHER = mounting.ROOT / "trainer" / "assets" / "emoji-sd3.safetensors"
BASE = replace(
    CONFIG, steps=120, batch_size=8, evaluate_every=20, preview_every=0, save_every=40, keep="last",
    fake_updates=5, teacher_steps=0,
)  # fmt: skip
RUNS = {
    "healthy": BASE,
    "lr100": replace(BASE, student_lr=0.1, fake_lr=0.1, steps=60, evaluate_every=15),
    "fakelag": replace(BASE, fake_lr=1e-6),
}
METRICS = ("anchor_error", "score_cosine", "fake_loss", "student_grad_norm", "fake_grad_norm")
MEASURES = ("step", "diversity_kept", "teacher_distance", "distances")
KEPT_UPDATES = 100


def trained(folder: Path, name: str, config: DistillConfig) -> RunDirectory:
    """The run in `folder`, trained if it is not there."""
    if (folder / name / "settings.json").exists():
        return RunDirectory.open(folder / name)
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(TEACHER)),
        config=config,
        output=str(folder / f"{name}.safetensors"),
    )
    prompts = caption_sample(held_out=False, count=2000, seed=0)
    run = create_run(folder / name, request, prompts, overwrite=False)
    with shown_by(print):
        run_distillation(run, on_progress=lambda progress: None, with_report=False)
    return run


def digits(value: object) -> object:
    """Numbers with three digits, lists included."""
    if isinstance(value, list):
        return [digits(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main() -> None:
    """Train what is missing and write the file."""
    curves = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for name, config in RUNS.items():
            run = trained(folder, name, config)
            lines = run.metrics()[:KEPT_UPDATES]
            curves[name] = {
                "config": {"student_lr": config.student_lr, "fake_lr": config.fake_lr},
                "metrics": {key: [digits(line[key]) for line in lines] for key in METRICS},
                "evaluations": [
                    {key: digits(line[key]) for key in MEASURES}
                    for line in run.metrics(EVALUATIONS)
                ],
            }
    facts = {"written by": "python tools/make_diagnosis_curves.py", "runs": curves}
    target = mounting.ROOT / "tests" / "goldens" / "diagnosis-curves.json"
    target.write_text(json.dumps(facts, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
