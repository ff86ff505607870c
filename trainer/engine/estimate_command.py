"""The `estimate` command: what an update of this very checkpoint needs, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...core.families import Detection
from ..config import DistillConfig
from ..presets import PRESETS
from .device import DTYPES, choose_device, choose_dtype
from .update_memory import UpdateMemory, checkpoint_memory

GIB = 2**30
# A driver's own memory, and what an allocator rounds up and cannot use: assumed, not measured.
DRIVER_BYTES, ALLOCATOR_SHARE = 0.6 * GIB, 0.08
Report = Callable[[str], object]


@dataclass(frozen=True)
class MemoryEstimate:
    """What was counted, by what it was counted for.

    Attributes:
        rows: with the settings as they are, with checkpointing off and on.
        memory: bytes of the card that was asked about.
        fits: the first preset or rung that fits that card, and its counted memory; None: none does.
        dtype: number format of the network.
    """

    rows: dict[str, UpdateMemory]
    memory: int | None
    fits: tuple[str, UpdateMemory] | None
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """The estimate, ready for JSON; all sizes in bytes."""
        return {
            "dtype": self.dtype,
            "rows": {name: asdict(row) | {"peak": row.peak} for name, row in self.rows.items()},
            "memory": self.memory,
            "fits": self.fits and {"settings": self.fits[0], "peak": self.fits[1].peak},
        }


def needed_on_card(counted: UpdateMemory) -> float:
    """Bytes that a card should have for what was counted."""
    return counted.peak * (1 + ALLOCATOR_SHARE) + DRIVER_BYTES


def estimate_memory(
    path: Path,
    detection: Detection,
    config: DistillConfig,
    memory: int | None,
    encoders: Mapping[str, Path],
    report: Report,
) -> MemoryEstimate:
    """Count an update with these settings, and look for what fits a card.

    Args:
        memory: bytes of the card; None: only the settings themselves are counted.
        report: is told what is being counted.

    Raises:
        DPDMDError: the checkpoint's files or the settings cannot be used.
    """
    dtype = _dtype(config, memory)

    def count(name: str, settings: DistillConfig) -> UpdateMemory:
        report(f"Counting: {name}")
        return checkpoint_memory(path, detection, settings, dtype, dict(encoders))

    rows = {
        f"gradient checkpointing {'on' if on else 'off'}": count(
            f"gradient checkpointing {'on' if on else 'off'}",
            replace(config, gradient_checkpointing=on),
        )
        for on in (False, True)
    }
    fits = None
    if memory is not None:
        fits = next((pair for pair in rows.items() if needed_on_card(pair[1]) <= memory), None)
        fits = fits or _first_that_fits(detection, config, memory, count)
    return MemoryEstimate(rows, memory, fits, str(dtype).removeprefix("torch."))


def _dtype(config: DistillConfig, memory: int | None) -> torch.dtype:
    """The run's number format; auto is bfloat16 on the card that is asked about."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if memory is not None and config.device != "cpu":
        return torch.bfloat16
    return choose_dtype("auto", choose_device(config.device))


def _first_that_fits(
    detection: Detection,
    config: DistillConfig,
    memory: int,
    count: Callable[[str, DistillConfig], UpdateMemory],
) -> tuple[str, UpdateMemory] | None:
    """The rungs below the settings, then presets from large to small: the first that fits."""
    candidates = []
    checkpointed = replace(config, gradient_checkpointing=True)
    if config.batch_size > 1:
        rung = replace(checkpointed, micro_batch_size=1)
        candidates.append(("--gradient-checkpointing --micro-batch-size 1", rung))
    for name, values in reversed(PRESETS[detection.family].items()):
        changed = {key: value for key, value in values.items() if hasattr(config, key)}
        candidates.append((f"--preset {name}", replace(config, **changed)))
    for name, settings in candidates:
        counted = count(name, settings)
        if needed_on_card(counted) <= memory:
            return name, counted
    return None
