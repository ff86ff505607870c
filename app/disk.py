"""Whether what a run writes finds room on its disk, said before it begins."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import OutputError
from ..core.families import Detection, identify
from .config.distill_config import DistillConfig
from .config.request import DistillRequest
from .estimate import MOMENT_COPIES, arithmetic_memory, bytes_in_16_bit
from .library.model_folders import size_text
from .runs.directory import KEPT_CHECKPOINTS, KEPT_STATES

# Sheets of three prompts by three seeds; six held-out prompts by nine seeds of the teacher's.
IMAGES_OF_A_PREVIEW, MEASURED_IMAGES = 9, 54
BYTES_OF_A_PIXEL = 2
"""Of a photograph as PNG; drawings take less."""


@dataclass(frozen=True)
class DiskUse:
    """Bytes on disk where a run has most of them.

    Attributes:
        states: saved states; the oldest goes before a new one is written.
        loras: those of saved steps.
        best: the student that is the nearest to the teacher so far, and its successor.
        images: previews, and the teacher's to measure against.
        result: the LoRA that it is about, which may lie on another disk.
    """

    states: int
    loras: int
    best: int
    images: int
    result: int

    @property
    def in_run(self) -> int:
        """Bytes in the run's own folder."""
        return self.states + self.loras + self.best + self.images


def disk_use(detection: Detection, config: DistillConfig, half_bytes: int) -> DiskUse:
    """What a run with these settings has on disk at most.

    Args:
        half_bytes: what the checkpoint's numbers take in 16 bit (`bytes_in_16_bit`).
    """
    adapters = arithmetic_memory(detection, config, half_bytes).adapters
    student = adapters * config.student_rank / (config.student_rank + config.fake_rank)
    state = adapters * (1 + MOMENT_COPIES[config.optimizer])
    state += student if config.ema_decay else 0.0
    saves = -(-config.steps // config.save_every)
    measured = bool(config.evaluation_prompts and config.evaluate_every)
    previews = 3 + config.steps // config.preview_every if config.preview_every else 0
    sizes = config.resolutions or ((detection.resolution, detection.resolution),)
    pixels = max(width * height for width, height in sizes)
    images = IMAGES_OF_A_PREVIEW * previews + (MEASURED_IMAGES if measured else 0)
    half = student / 2  # files hold 16 bit, adapters 32
    return DiskUse(
        states=round(state * min(KEPT_STATES, saves)),
        loras=round(half * min(KEPT_CHECKPOINTS + 1, saves)),
        best=round(2 * student) if measured else 0,
        images=images * pixels * BYTES_OF_A_PIXEL,
        result=round(half),
    )


def check_room(folder: Path, request: DistillRequest) -> None:
    """Say no now where the disk would be too full at the end.

    Args:
        folder: the run's; what is in it already makes room for the new run.

    Raises:
        OutputError: a disk has less free than the run writes there; says how much and what helps.
    """
    path = Path(request.model.checkpoint)
    use = disk_use(identify(path), request.config, bytes_in_16_bit(path))
    output = Path(request.output)
    together = _device(folder) == _device(output.parent)
    in_folder = use.in_run + (use.result if together else 0)
    free = _free(folder)
    if free is not None and in_folder > free + _size(folder):
        raise OutputError(
            f"The disk of {folder.parent} has {size_text(free)} free, and this run would take "
            f"{size_text(in_folder)} there: saved states {size_text(use.states)}, LoRAs "
            f"{size_text(in_folder - use.states - use.images)}, images {size_text(use.images)}. "
            "Free some space, put the run on another disk (--run, or DPDMD_HOME for all runs), or "
            "lower --student-rank and --fake-rank."
        )
    free = _free(output.parent)
    if not together and free is not None and use.result > free:
        raise OutputError(
            f"The disk of {output.parent} has {size_text(free)} free, and the LoRA will take "
            f"{size_text(use.result)}. Free some space or name another --output."
        )


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _device(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(_existing(folder)).st_dev
    return None


def _free(folder: Path) -> int | None:
    """Free bytes of a folder's disk; None where the system does not tell, as some networks do."""
    with contextlib.suppress(OSError):
        found = shutil.disk_usage(_existing(folder))
        return found.free if found.total else None
    return None


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
