"""The `estimate` command: what an update of this very checkpoint needs, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...app.config.distill_config import DistillConfig
from ...app.config.presets import PRESETS
from ...core.families import Detection
from ..device import DTYPES, choose_device, choose_dtype, free_memory
from ..memory.fallback import fallbacks_left
from ..memory.update_memory import UpdateMemory, checkpoint_memory

GIB = 2**30
# A driver's own memory, and what an allocator rounds up and cannot use: assumed, not measured.
DRIVER_BYTES, ALLOCATOR_SHARE = 0.6 * GIB, 0.08
Report = Callable[[str], object]


@dataclass(frozen=True)
class MemoryEstimate:
    """What was counted, by what it was counted for.

    Attributes:
        rows: with the settings as they are, and with one rung of the memory ladder after the other.
        memory: bytes of the card that was asked about, else what is free on the device at hand.
        fits: the first rung or preset that fits, and its counted memory; None: none does.
        dtype: number format of the network.
        asked: whether a card was asked about.
    """

    rows: dict[str, UpdateMemory]
    memory: int | None
    fits: tuple[str, UpdateMemory] | None
    dtype: str
    asked: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The estimate, ready for JSON; all sizes in bytes."""
        return {
            "dtype": self.dtype,
            "rows": {name: asdict(row) | {"peak": row.peak} for name, row in self.rows.items()},
            "memory": self.memory,
            "asked": self.asked,
            "fits": self.fits and {"settings": self.fits[0], "peak": self.fits[1].peak},
        }


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
        memory: bytes of the card; None: what is free on the device at hand, if it has its own.
        report: is told what is being counted; the first rung that fits is the last one counted.

    Raises:
        DPDMDError: the checkpoint's files or the settings cannot be used.
    """
    dtype = _dtype(config, memory)
    asked = memory is not None
    room = memory if memory is not None else free_memory(choose_device(config.device))
    overhead = DRIVER_BYTES if asked else 0.0  # a driver's share of free memory is taken already

    def count(name: str, settings: DistillConfig) -> UpdateMemory:
        report(f"Counting: {name}")
        return checkpoint_memory(path, detection, settings, dtype, dict(encoders))

    def fits_in(counted: UpdateMemory) -> bool:
        return room is not None and counted.peak <= (room - overhead) / (1 + ALLOCATOR_SHARE)

    rows: dict[str, UpdateMemory] = {}
    for name, settings in rung_settings(config).items():
        rows[name] = count(name, settings)
        if fits_in(rows[name]):
            fits = name, rows[name]
            break  # a count of a large network takes a minute; what lies below fits as well
    else:
        presets = _preset_settings(detection, config).items() if room is not None else ()
        counts = ((name, count(name, settings)) for name, settings in presets)
        fits = next((pair for pair in counts if fits_in(pair[1])), None)
    return MemoryEstimate(rows, room, fits, str(dtype).removeprefix("torch."), asked)


def rung_settings(config: DistillConfig) -> dict[str, DistillConfig]:
    """The settings as they are, and with each rung of the ladder on top of those before it."""
    found, options = {"as set": config}, []
    if config.optimizer != "adamw8bit":
        found["--optimizer adamw8bit"] = replace(config, optimizer="adamw8bit")
    while left := fallbacks_left(config):
        fallback = left[0]
        if fallback.name == "micro_batch_size":
            fallback = replace(fallback, value=1)  # the halves between say little
        config = fallback.taken(config)
        options.append(fallback.option)
        found[" ".join(options)] = config
    return found


def _dtype(config: DistillConfig, memory: int | None) -> torch.dtype:
    """The run's number format; auto is bfloat16 on the card that is asked about."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if memory is not None and config.device != "cpu":
        return torch.bfloat16
    return choose_dtype("auto", choose_device(config.device))


def _preset_settings(detection: Detection, config: DistillConfig) -> dict[str, DistillConfig]:
    """The family's presets, from large cards to small."""
    return {
        f"--preset {name}": replace(config, **values)
        for name, values in reversed(PRESETS[detection.family].items())
    }
