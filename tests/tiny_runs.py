"""Runs of a few updates on tiny checkpoints, for tests of the whole job."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import checkpoints
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.loading import prediction_check
from safetensors.torch import load_file

# The check looks at the smallest picture that it can call smooth: a tiny network's attention over
# 64 x 64 positions takes longer than an update.
prediction_check.MAX_LATENT_SIZE = prediction_check.MIN_LATENT_SIZE

PROMPTS = ["a cat", "a {red|blue} dog", "a (tall:1.2) house"]
TINY = {
    "steps": 4,
    "batch_size": 2,
    "student_rank": 2,
    "fake_rank": 3,
    "fake_updates": 2,
    "teacher_steps": 8,  # two to the anchor, not seven
    "num_anchored_steps": 1,
    "gradient_steps": "random",
    "resolution": "32x32",
    "save_every": 2,
    "preview_every": 0,
    "student_lr": 1e-2,
    "warmup_steps": 1,
    "ema_decay": 0.5,
}
BUILDERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}


def new_run(
    folder: Path,
    checkpoint: Path,
    *,
    teacher_loras: Sequence[tuple[Path, float]] = (),
    include: bool = False,
    file_format: str = "kohya",
    **settings,
) -> RunDirectory:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(TINY | settings),
        output=str(folder / "student.safetensors"),
        teacher_loras=tuple(TeacherLora(path=str(p), strength=s) for p, s in teacher_loras),
        include_teacher_loras=include,
        file_format=file_format,  # type: ignore[arg-type]
    )
    folder.mkdir(parents=True, exist_ok=True)
    return runner.create_run(folder / "run", request, PROMPTS, overwrite=False)


def distil(run: RunDirectory, on_progress=lambda progress: None) -> runner.Outcome:
    return runner.run_distillation(run, on_progress=on_progress)


@contextlib.contextmanager
def heard(act: Callable[[str], object] = lambda text: None) -> Iterator[list[str]]:
    """The lines that the program logs as information while the block runs.

    Args:
        act: is called with each line when it is logged.
    """
    lines: list[str] = []

    def hear(record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and record.name != "dpdmd_studio.attention":
            lines.append(record.getMessage())
            act(lines[-1])

    logger, handler = logging.getLogger("dpdmd_studio"), logging.Handler()
    handler.emit = hear
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def request_stop(run: RunDirectory) -> None:
    """What the queue does to a run that shall stop at its next update and keep what there is."""
    (run.path / "stop").write_text("")


def final_state(run: RunDirectory) -> dict[str, torch.Tensor]:
    folder = run.latest_state()
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {f"{file.name}/{k}": v for k, v in load_file(file).items()}
    return tensors


def metrics_of(run: RunDirectory) -> list[dict]:
    measured = ("seconds", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in measured} for line in run.metrics()]
