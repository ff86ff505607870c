"""Updates until a run is done: its metrics, saved states, progress, and the wish to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...app.runs.directory import RunDirectory
from ..device import device_memory, free_memory, memory_in_use
from .trainer import Trainer, learning_rate

LARGE_STATE, PAUSE = 2**28, 600.0
"""Bytes of a state from which on it is not saved more often than once in so many seconds."""
HICCUP = 3.0
"""As how many usual updates one counts at most in the time left."""


@dataclass(frozen=True)
class Progress:
    """What a front end shows after one student update."""

    step: int
    steps: int
    metrics: dict[str, float]
    seconds_per_step: float

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the last update."""
        return (self.steps - self.step) * self.seconds_per_step


def train(
    trainer: Trainer,
    run: RunDirectory,
    *,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    on_save: Callable[[int], None],
) -> bool:
    """Update until the configured steps are done or a stop is asked for; True when all are done.

    Args:
        on_progress: called after every student update.
        should_stop: asked after every student update.
        on_save: called with the step every `save_every` updates and where this ends, after the
            state was saved, if it was (previews, loadable LoRA).
    """
    config = trainer.config

    def stop_wanted() -> bool:  # by anyone, so that all processes stop at the same update
        return trainer.ranks.any(should_stop())

    if trainer.step == 0 and not trainer.head_start(stop_wanted):
        return False
    states = _States(trainer, run)
    average = 0.0
    while trainer.step < config.steps:
        started = time.perf_counter()
        metrics = trainer.update()
        seconds = time.perf_counter() - started
        metrics |= _memory(trainer.device)
        line = {"step": trainer.step, "seconds": round(seconds, 4), **metrics}
        line["student_lr"] = learning_rate(config, "student", trainer.step)
        if trainer.ranks.size > 1:
            line["processes"] = trainer.ranks.size
        run.append_metrics(line)
        average = smoothed(average, seconds)
        progress = Progress(trainer.step, config.steps, metrics, average)
        done = trainer.step == config.steps
        told = done or trainer.step % config.save_every == 0
        if done or (told and states.due()):  # before anything is drawn or shown, which might fail
            states.save()
        if told:
            on_save(trainer.step)
        on_progress(progress)
        stopping = stop_wanted()
        if stopping:
            states.save()
        if stopping and not told:
            on_save(trainer.step)
        if stopping and not done:
            return False
    return True


class _States:
    """Saves a run's state, once an update; a large one not too often."""

    def __init__(self, trainer: Trainer, run: RunDirectory) -> None:
        self._trainer, self._run = trainer, run
        self._step, self._time = trainer.step, time.monotonic()

    def due(self) -> bool:
        """Whether the last one is small or old; all processes are told the same."""
        old = time.monotonic() - self._time >= PAUSE
        return self._trainer.ranks.of_main(old or self._run.state_bytes() < LARGE_STATE)

    def save(self) -> None:
        """Save it, unless this update's is there."""
        if self._step != self._trainer.step:
            self._trainer.save(self._run)
            self._step, self._time = self._trainer.step, time.monotonic()


def smoothed(average: float, seconds: float) -> float:
    """The seconds of an update as they go into the time left: the slow first is forgotten quickly.

    A computer that slept, or a run that was halted, makes one update of hours. It counts as
    `HICCUP` usual ones: what has truly become slower is believed after some updates.
    """
    if not average:
        return seconds
    return 0.9 * average + 0.1 * min(seconds, HICCUP * average)


def _memory(device: torch.device) -> dict[str, float]:
    """Peak bytes in use, and the bytes that the device has and has free, where known."""
    found = {"memory_bytes": memory_in_use(device), "device_memory_bytes": device_memory(device)}
    found["free_memory_bytes"] = free_memory(device)
    return {name: float(value) for name, value in found.items() if value is not None}
