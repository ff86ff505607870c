"""One run's updates: student, fake score, optimizers, and what happens when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ...app.config.distill_config import DistillConfig
from ...app.config.memory_fallback import fallbacks_left
from ...app.runs.directory import RunDirectory
from ...core.errors import NonFiniteError
from ..device import is_out_of_memory, release_memory
from ..distributed import Ranks
from ..method.dp_dmd import Metrics
from ..method.objective import Grids
from ..model.loss_scale import LossScale
from ..model.roles import RoleNetwork
from .batches import BatchSource
from .gradients import Gradients, Samples
from .in_force import SettingsInForce, apply
from .optimizers import AdapterOptimizer
from .state import Learned, load_state, save_state

T = TypeVar("T")
KEPT = "The last saved state and its LoRA are kept in the run. "
log = logging.getLogger("dpdmd_studio.training")


class Trainer:
    """One run's optimizers and their updates. `step` counts finished student updates."""

    def __init__(
        self,
        network: RoleNetwork,
        batches: BatchSource,
        settings: SettingsInForce,
        ranks: Ranks,
        fingerprint: str = "",
    ) -> None:
        """Args:
        settings: asked for anew by each attempt, since a memory fallback changes them.
        ranks: the processes of this run.
        fingerprint: of what the run was started with; a saved state resumes only with the same.
        """
        self.network, self.roles, self.batches = network, network.roles, batches
        self.settings, self.ranks, self.fingerprint = settings, ranks, fingerprint
        self.gradients = Gradients(network, settings, ranks)
        self.device = network.call.device
        self.step = 0
        config = settings.config
        self.optimizers = {
            role: AdapterOptimizer(
                self.roles.parameters(role), config.optimizer, offload=config.offload_optimizer
            )
            for role in ("student", "fake")
        }
        self._finite: list[tuple[str, Tensor]] = []  # of each gradient since they were looked at
        self.average = self.roles.state("student") if config.ema_decay else None

    @property
    def grids(self) -> Grids:
        """The run's noise levels, on the device."""
        return self.gradients.grids

    @property
    def config(self) -> DistillConfig:
        """The settings in force."""
        return self.settings.config

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
        before = sum(scale.left_out for scale in self.network.scales.values())
        batch = self.batches.batch("student", step).to(self.device)

        def work() -> tuple[Metrics, Samples]:
            generator = self.batches.generator("student-levels", step)
            return self.gradients.student(batch, generator, step)

        metrics, samples = self._within_memory("student", work)
        metrics["student_grad_norm"] = self._apply("student", step, metrics)
        self._update_average(step)
        for index in range(self.config.fake_updates):
            if not self.config.share_rollouts:
                samples = self._fresh_samples(step, index)
            metrics |= self._fake_update(samples, step, index)
        found = self._read(step, metrics)
        self.step = step
        means = self.ranks.mean(list(found.values()), self.config.batch_size)
        told = {n: value for n, value in zip(found, means, strict=True) if math.isfinite(value)}
        left_out = sum(scale.left_out for scale in self.network.scales.values()) - before
        return told | ({"left_out_steps": left_out} if left_out else {})

    def _fresh_samples(self, step: int, index: int) -> Samples:
        batch = self.batches.batch("fake", step, index).to(self.device)

        def work() -> Samples:
            return self.gradients.samples(
                batch, self.batches.generator("fake-samples", step, index)
            )

        return self._within_memory("fake", work)

    def _fake_update(self, samples: Samples, step: int, index: int) -> Metrics:
        def work() -> Metrics:
            generator = self.batches.generator("fake-levels", step, index)
            return self.gradients.fake(samples, generator)

        metrics = self._within_memory("fake", work)
        metrics["fake_grad_norm"] = self._apply("fake", step, metrics)
        return metrics

    def _within_memory(self, role: str, work: Callable[[], T], *, keep: bool = False) -> T:
        """The result of `work`, attempted again with a fallback whenever memory runs out.

        The adapters are as they were before it and its draws are made anew, so nothing is skipped.

        Args:
            keep: whether `work` belongs to an optimizer's step, which needs the gradients again.
        """
        while True:
            try:
                return self.ranks.attempt(work)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.settings.run is None:
                    raise
                lacking = type(error)(*error.args)  # without the frames that hold the activations
            if not keep:
                self.optimizers[role].zero_grad()
            release_memory(self.device)
            if not self._fall_back(for_step=keep):
                raise lacking

    def _fall_back(self, *, for_step: bool) -> bool:
        """Take the next memory fallback; False if there is none.

        Args:
            for_step: whether memory ran out in an optimizer's step, which only some fallbacks ease.
        """
        left = fallbacks_left(self.config, self.ranks.size)
        fallback = next((f for f in left if f.eases_step or not for_step), None)
        if fallback is None:
            return False
        step = self.step + 1
        self.settings.take(fallback, step)
        apply(fallback, self.network.call.network, self.optimizers)
        log.info(
            "The device ran out of memory in update %d. From here on %s: "
            "%s. The interrupted pass is done again; nothing is skipped.",
            step,
            fallback.option,
            fallback.words,
        )
        return True

    def _apply(self, role: str, step: int, metrics: Metrics) -> Tensor:
        """Clip and apply one role's gradients; returns their norm before clipping.

        Gradients that are not finite are not applied; `_read` raises the error, but in float16
        such a step is left out.

        Raises:
            NonFiniteError: in float16, too many steps in a row were left out.
        """
        parameters, optimizer = self.roles.parameters(role), self.optimizers[role]
        self.ranks.sum_gradients(parameters)
        scale = self.network.scales.get(role)
        if scale is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(scale.factor)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        finite = torch.isfinite(norm)
        if scale is not None and not self._goes_on(role, scale, bool(finite), metrics):
            optimizer.zero_grad()
            return norm
        self._finite.append((role, finite))
        if not optimizer.checks_itself:
            self._read(step, metrics)
        self._within_memory(role, optimizer.prepare, keep=True)
        # the head start (step 0) runs at the peak: there is no student yet to disturb
        rate = learning_rate(self.config, role, step or self.config.warmup_steps + 1)
        optimizer.step(rate, finite)
        return norm

    def _goes_on(self, role: str, scale: LossScale, finite: bool, metrics: Metrics) -> bool:
        """Whether a float16 step is taken; what comes next has another loss scale where it is not.

        All processes see the same sum of gradients, so they decide alike.

        Raises:
            NonFiniteError: too many steps in a row were left out.
        """
        update, said = self.step + 1, any(s.left_out for s in self.network.scales.values())
        scale.note(finite=finite)
        if scale.gives_up:
            bad = [name for name, value in metrics.items() if not bool(torch.isfinite(value))]
            raise NonFiniteError(
                f"Update {update}: the {role}'s gradient was not finite in float16 "
                f"{scale.in_a_row} times in a row{' (' + ', '.join(bad) + ' too)' if bad else ''}, "
                "though the loss scale was halved each time. None of these steps was applied. "
                f"{self._kept()}Start a new run with --dtype bfloat16 or float32, or with a lower "
                "learning rate."
            )
        if not finite and not said:
            log.info(
                "Update %d: the %s's gradient goes beyond what float16 holds. This one step is "
                "left out and the loss scale halved to %g, as is usual in float16; it is not said "
                "again.",
                update,
                role,
                scale.factor,
            )
        return finite

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
            f"{self._kept()}Start a new run with a lower learning rate, or with --dtype bfloat16 "
            "or float32."
        )

    def _kept(self) -> str:
        run = self.settings.run
        return KEPT if run is None or run.latest_state() is not None else ""

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
            dtype = self.network.call.dtype
            save_state(run, self.step, self.fingerprint, self._learned(), dtype)

    def _learned(self) -> Learned:
        return Learned(self.roles, self.optimizers, self.average, self.network.scales)

    def resume(self, run: RunDirectory) -> bool:
        """Restore the newest saved state; False if there is none: then all starts anew."""
        folder = run.latest_state()
        if folder is None:
            run.truncate_metrics(0)
            return False
        self.step = load_state(folder, self.fingerprint, self._learned())
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
