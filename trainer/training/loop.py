"""Alternates student and fake-score updates, saves, reports, stops. Knows no mathematics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...app.config.distill_config import DistillConfig
from ...app.runs.directory import RunDirectory
from ...core.errors import NonFiniteError
from ..device import device_memory, free_memory, is_out_of_memory, memory_in_use, release_memory
from ..distributed import joined
from ..method.distiller import Distiller, Metrics, Samples
from ..model.roles import AdapterRoles
from .batches import BatchSource
from .memory_ladder import MemoryLadder
from .optimizers import AdapterOptimizer
from .state import load_state, save_state

T = TypeVar("T")


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


class Trainer:
    """One run's optimizers and their updates. `step` counts finished student updates."""

    def __init__(
        self,
        distiller: Distiller,
        roles: AdapterRoles,
        batches: BatchSource,
        config: DistillConfig,
        fingerprint: str,
    ) -> None:
        self.distiller, self.roles, self.batches, self.config = distiller, roles, batches, config
        self.fingerprint, self.ranks = fingerprint, joined()
        self.step = 0
        self.ladder: MemoryLadder | None = None
        settings = distiller.config  # on the rung that the run begins on
        self.optimizers = {
            role: AdapterOptimizer(
                roles.parameters(role), settings.optimizer, offload=settings.offload_optimizer
            )
            for role in ("student", "fake")
        }
        self._finite: list[tuple[str, Tensor]] = []  # of each gradient since they were looked at
        self.average = roles.state("student") if config.ema_decay else None

    def student_weights(self) -> dict[str, Tensor]:
        """The student as it would be saved now: the moving average where one is kept."""
        return self.average if self.average is not None else self.roles.state("student")

    def head_start(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Fake-score updates before the first student update; False if stopped among them."""
        for index in range(self.config.fake_head_start):
            if should_stop():
                return False
            self._read(0, self._fake_update(self._fresh_samples(0, index), 0, index))
        return True

    def update(self) -> dict[str, float]:
        """One student update and its fake-score updates; returns their metrics.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the update is not applied.
        """
        step = self.step + 1
        batch = self.batches.batch("student", step)

        def work() -> tuple[Metrics, Samples]:
            generator = self.batches.generator("student-levels", step)
            return self.distiller.student_update(batch, generator)

        metrics, samples = self._within_memory("student", work)
        metrics["student_grad_norm"] = self._apply("student", step, metrics)
        self._update_average(step)
        for index in range(self.config.fake_updates):
            if not self.config.share_rollouts:
                samples = self._fresh_samples(step, index)
            metrics |= self._fake_update(samples, step, index)
        found = self._read(step, metrics)
        self.step = step
        return dict(
            zip(found, self.ranks.mean(list(found.values()), self.config.batch_size), strict=True)
        )

    def _fresh_samples(self, step: int, index: int) -> Samples:
        batch = self.batches.batch("fake", step, index)

        def work() -> Samples:
            generator = self.batches.generator("fake-samples", step, index)
            return self.distiller.draw_samples(batch, generator)

        return self._within_memory("fake", work)

    def _fake_update(self, samples: Samples, step: int, index: int) -> Metrics:
        def work() -> Metrics:
            generator = self.batches.generator("fake-levels", step, index)
            return self.distiller.fake_update(samples, generator)

        metrics = self._within_memory("fake", work)
        metrics["fake_grad_norm"] = self._apply("fake", step, metrics)
        return metrics

    def _within_memory(self, role: str, work: Callable[[], T], *, keep: bool = False) -> T:
        """The result of `work`, done again a rung lower whenever the device runs out of memory.

        The adapters are as they were before it and its draws are made anew, so nothing is skipped.

        Args:
            keep: whether `work` belongs to an optimizer's step, which needs the gradients again.
        """
        while True:
            try:
                return self.ranks.attempt(work)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.ladder is None:
                    raise
                lacking = type(error)(*error.args)  # without the frames that hold the activations
            if not keep:
                self.optimizers[role].zero_grad()
            release_memory(self.distiller.network.device)
            if not self.ladder.step_down(self.step + 1, for_step=keep):
                raise lacking

    def _apply(self, role: str, step: int, metrics: Metrics) -> Tensor:
        """Clip and apply one role's gradients; returns their norm before clipping.

        Gradients that are not finite are not applied; `_read` raises the error.
        """
        parameters, optimizer = self.roles.parameters(role), self.optimizers[role]
        self.ranks.sum_gradients(parameters)
        scale = self.distiller.loss_scale
        if scale != 1.0:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        finite = torch.isfinite(norm)
        self._finite.append((role, finite))
        if not optimizer.checks_itself:
            self._read(step, metrics)
        self._within_memory(role, optimizer.prepare, keep=True)
        # the head start (step 0) runs at the peak: there is no student yet to disturb
        rate = learning_rate(self.config, role, step or self.config.warmup_steps + 1)
        optimizer.step(rate, finite)
        return norm

    def _read(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Metrics as numbers; the one place of an update where the host waits for the device.

        Raises:
            NonFiniteError: a gradient was not finite.
        """
        looked_at, self._finite = self._finite, []
        tensors = [*metrics.values(), *(finite for _, finite in looked_at)]
        values = torch.stack([value.float() for value in tensors]).tolist()
        found = dict(zip(metrics, values, strict=False))
        flags = values[len(metrics) :]
        role = next((r for (r, _), ok in zip(looked_at, flags, strict=True) if not ok), None)
        if role is None:
            return found
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        raise NonFiniteError(
            f"Update {step}: the {role}'s gradient is not finite"
            f"{' (' + ', '.join(bad) + ' too)' if bad else ''}. The update was not applied. "
            "The last saved state and its LoRA are kept in the run. Start a new run with a "
            "lower learning rate, or with --dtype bfloat16 or float32."
        )

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if self.average is not None:
            # ramped up, or a short run would keep mostly the zeros it began with
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            for name, parameter in self.roles.named_parameters("student"):
                kept = self.average[name]
                kept.lerp_(parameter.detach().to(kept), 1 - decay)

    def save(self, run: RunDirectory) -> None:
        """Save the state after the last finished update; the first of several processes does."""
        for role in self.optimizers:
            self.ranks.require_equal(f"{role} adapter", self.roles.parameters(role))
        if self.ranks.is_main:
            save_state(run, self.step, self.fingerprint, self.roles, self.optimizers, self.average)

    def resume(self, run: RunDirectory) -> bool:
        """Restore the newest saved state; False if there is none: then all starts anew."""
        folder = run.latest_state()
        if folder is None:
            run.truncate_metrics(0)
            return False
        self.step = load_state(folder, self.fingerprint, self.roles, self.optimizers, self.average)
        run.truncate_metrics(self.step)
        return True


def learning_rate(config: DistillConfig, role: str, step: int) -> float:
    """Learning rate of student update `step` (from 1): linear warm-up, then cosine decay."""
    peak = config.student_lr if role == "student" else config.fake_lr
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return peak * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def train(
    trainer: Trainer,
    run: RunDirectory,
    *,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    on_save: Callable[[int], None],
) -> bool:
    """Update until the configured steps are done or a stop is asked for; True when all are done.

    Args:
        report: called after every student update.
        should_stop: asked after every student update.
        on_save: called with the step after each saved state (previews, loadable LoRA).
    """
    config = trainer.config

    def stop_wanted() -> bool:  # by anyone, so that all processes stop at the same update
        return trainer.ranks.any(should_stop())

    if trainer.step == 0 and not trainer.head_start(stop_wanted):
        return False
    speed = _Speed()
    while trainer.step < config.steps:
        started = time.perf_counter()
        metrics = trainer.update()
        seconds = time.perf_counter() - started
        metrics |= _memory(trainer.distiller.network.device)
        line = {"step": trainer.step, "seconds": round(seconds, 4), **metrics}
        line["student_lr"] = learning_rate(config, "student", trainer.step)
        if trainer.ranks.size > 1:
            line["processes"] = trainer.ranks.size
        run.append_metrics(line)
        progress = Progress(trainer.step, config.steps, metrics, speed.after(seconds))
        done = trainer.step == config.steps
        saved = done or trainer.step % config.save_every == 0
        if saved:  # before anything is drawn or shown, which might fail
            trainer.save(run)
            on_save(trainer.step)
        report(progress)
        stopping = stop_wanted()
        if stopping and not saved:
            trainer.save(run)
            on_save(trainer.step)
        if stopping and not done:
            return False
    return True


def _memory(device: torch.device) -> dict[str, float]:
    """Peak bytes in use, and the bytes that the device has and has free, where known."""
    found = {"memory_bytes": memory_in_use(device), "device_memory_bytes": device_memory(device)}
    found["free_memory_bytes"] = free_memory(device)
    return {name: float(value) for name, value in found.items() if value is not None}


class _Speed:
    """Seconds per update: a moving average that forgets the slow first update quickly."""

    def __init__(self) -> None:
        self._average: float | None = None

    def after(self, seconds: float) -> float:
        before = self._average if self._average is not None else seconds
        self._average = 0.9 * before + 0.1 * seconds
        return self._average
