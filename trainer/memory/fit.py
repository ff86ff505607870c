"""Which memory fallbacks a run begins with, and which it has taken, noted in its folder.

What an update needs by arithmetic is compared with the device's free memory; one fallback after the
other is taken until it fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...app.config.distill_config import DistillConfig
from ...app.config.memory_fallback import Fallback, fallbacks_left
from ...app.estimate import ALLOCATOR_SHARE, arithmetic_memory, bytes_in_16_bit
from ...app.runs.directory import RunDirectory
from ...core.errors import RunError
from ...core.families import identify
from ..device import device_memory, dtype_name, free_memory
from ..distributed import Ranks

log = logging.getLogger("dpdmd_studio.memory")
GIB = 2**30
FILE = "memory.json"
NAMES = (
    "gradient_checkpointing", "micro_batch_size", "offload_optimizer", "base_weights",
    "gradient_steps", "offload_base",
)  # fmt: skip
CHANGING = ("base_weights", "gradient_steps")
"""Fallbacks that change what is learned."""
Needed = Callable[[DistillConfig], float]


@dataclass(frozen=True)
class FreeMemory:
    """What the devices of a run have left for it.

    Attributes:
        free: bytes that the run can take; of several processes on the device with the fewest.
        total: bytes that this process's device has, where known.
        processes: of the run.
    """

    free: int
    total: int | None
    processes: int = 1


def find_free_memory(device: torch.device, ranks: Ranks) -> FreeMemory | None:
    """What the devices of all processes have free; None where one is unknown. All have to ask."""
    found = ranks.exchange(free_memory(device))
    if None in found:
        return None
    return FreeMemory(min(found), device_memory(device), ranks.size)


@dataclass(frozen=True)
class Fit:
    """Settings that fit, or the lowest there are.

    Attributes:
        fallbacks: what was changed.
        text: what was found and chosen, for the user.
    """

    config: DistillConfig
    fallbacks: tuple[Fallback, ...]
    fits: bool
    text: str


def fit_memory(config: DistillConfig, needs: Needed, memory: FreeMemory) -> Fit:
    """The settings, changed only where that saves memory and only as far as needed.

    Args:
        needs: bytes that an update takes with some settings.
    """
    card = f"{memory.total / GIB:.1f} GB on the device, " if memory.total else ""
    needed = needs(config)
    text = f"Memory: {card}{memory.free / GIB:.1f} GB free; "
    text += f"an update needs about {needed / GIB:.1f} GB as set"
    taken: list[Fallback] = []
    while needed > memory.free and (left := fallbacks_left(config, memory.processes)):
        fallback = left[0]
        config = fallback.taken(config).validate()
        before, needed = needed, needs(config)
        if taken and taken[-1].name == fallback.name:
            taken.pop()  # a smaller share of the batch replaces a larger
        taken.append(fallback)
        text += f"; {fallback.option}: {needed / GIB:.1f} GB"
        assert needed <= before, fallback
    if needed > memory.free:
        text += (
            ". That is more than is free, and no fallback is left: the run begins all the same. "
            "Close what else uses the device, or choose a smaller --resolution or rank"
        )
    elif taken:
        text += ". Chosen, as --no-fit-memory would not: " + "; ".join(r.words for r in taken)
    return Fit(config, tuple(taken), needed <= memory.free, f"{text}.")


def needed_memory(path: Path, dtype: torch.dtype, processes: int = 1) -> Needed:
    """Bytes that an update of this checkpoint takes with some settings, as a function.

    Of several processes those of the one with the largest share of the batch.

    Raises:
        CheckpointError: its header cannot be read.
    """
    detection = identify(path)
    half = bytes_in_16_bit(path)
    name = dtype_name(dtype)

    def needs(config: DistillConfig) -> float:
        share = -(-config.batch_size // processes)  # the largest of a run's processes
        own = replace(config, dtype=name, batch_size=share)
        return arithmetic_memory(detection, own, half).peak * (1 + ALLOCATOR_SHARE)

    return needs


def begin_with_fallbacks(
    run: RunDirectory,
    config: DistillConfig,
    needs: Needed,
    memory: FreeMemory | None,
) -> tuple[DistillConfig, dict[str, int]]:
    """(settings that the run begins with, the update each fallback is in force since).

    A run that took some before keeps them.

    Args:
        config: the run's settings as they are.
        needs: bytes that an update takes with some settings.
        memory: where it is known.

    Raises:
        DPDMDError: the run's note of its fallbacks or the checkpoint is damaged.
    """
    config, since = read_fallbacks(run, config)
    if not config.fit_memory or memory is None:
        return config, since
    fit = fit_memory(config, needs, memory)
    log.info("%s", fit.text)
    if fit.fallbacks:
        state = run.latest_state()
        first = 1 if state is None else int(state.name.rpartition("-")[2]) + 1
        since = {fallback.name: first for fallback in fit.fallbacks} | since
        write_fallbacks(run, fit.config, since)
    return fit.config, since


def write_fallbacks(run: RunDirectory, config: DistillConfig, since: Mapping[str, int]) -> None:
    """Write into the run which fallbacks it has taken, and the update each is in force since."""
    taken = {name: getattr(config, name) for name in NAMES}
    run.write_json(FILE, taken | {"since": dict(since)})


def read_fallbacks(
    run: RunDirectory, config: DistillConfig
) -> tuple[DistillConfig, dict[str, int]]:
    """(settings with the fallbacks that the run took before, the update each is in force since).

    Raises:
        RunError: the file that says so is damaged.
    """
    if not (run.path / FILE).exists():
        return config, {}
    values = run.read_json(FILE)
    for name in NAMES:
        current = getattr(config, name)
        value: Any = values.get(name, current)  # a fallback that came later is not in older files
        if type(value) is not type(current):
            raise RunError(
                f"{run.path / FILE} is damaged: {name} is {value!r}, expected a value "
                f"like {current!r}. Delete that file to begin with the run's own settings."
            )
        if value != current:
            config = replace(config, **{name: value}).validate()
            log.info("This run was short of memory before: %s is %s now.", name, value)
    since = values.get("since", {})
    known = since if isinstance(since, dict) else {}
    return config, {k: v for k, v in known.items() if k in NAMES and type(v) is int}
