"""DP-DMD updates of the student and of the fake score on one frozen network (arXiv:2602.03139).

Each update runs its forwards, backpropagates, and leaves gradients in the adapter it trains; the
loop owns optimizers and schedules. Randomness comes from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...app.config.distill_config import DistillConfig
from ...core.diffusion.prediction import to_x0, training_target
from ...core.diffusion.schedule import (
    NUM_LEVELS,
    FlowSchedule,
    Levels,
    Schedule,
    few_step_positions,
    refine_positions,
    trailing_positions,
)
from ..device import to_device
from . import losses
from .guidance import Predict, guided
from .rollout import chord_x0, ode_step, roll, teacher_path

if TYPE_CHECKING:
    from ..model.conditioning import Conditioning

# DMD on VP models leaves out the ends of the schedule, as DMD2 does (timesteps 20 to 980).
VP_MATCHING_POSITIONS = (20, 980)


class Network(Predict, Protocol):
    """A denoiser and its schedule; the active role is set elsewhere."""

    prediction: str
    schedule: Schedule
    device: torch.device


class Roles(Protocol):
    """Switches which of teacher, student and fake the network acts as."""

    def use(self, role: str) -> None:
        """Act as `role` until the next call."""
        ...


@dataclass(frozen=True)
class Batch:
    """Inputs of one update: start noise (B, C, H, W) and conditioning of the same batch size."""

    noise: Tensor
    conditional: Conditioning
    unconditional: Conditioning


@dataclass(frozen=True)
class Samples:
    """Student predictions x0 (B, C, H, W), detached, with what they were conditioned on."""

    x0: Tensor
    batch: Batch


Metrics = dict[str, Tensor]


class Distiller:
    """The three roles' forwards and the losses between them."""

    def __init__(
        self,
        network: Network,
        roles: Roles,
        config: DistillConfig,
        teacher_guidance: float,
        loss_scale: float = 1.0,
    ) -> None:
        """Args:
        teacher_guidance: guidance scale of the real score and of the anchor.
        loss_scale: multiplies every loss before its backward, so that float16 gradients do not
            vanish; the loop divides it out of the gradients.
        """
        self.loss_scale = loss_scale
        self.network, self.roles, self.config = network, roles, config
        self.teacher_guidance = teacher_guidance
        schedule = network.schedule
        positions = few_step_positions(config.num_steps)
        self.levels = Levels.at_positions(schedule, positions).to(network.device)
        teacher_positions = teacher_grid(positions, config.effective_teacher_steps)
        self.teacher_levels = Levels.at_positions(schedule, teacher_positions).to(network.device)
        every = Levels.at_positions(schedule, torch.arange(NUM_LEVELS, dtype=torch.float64))
        self._training_levels = every.to(network.device)

    @property
    def anchors(self) -> bool:
        """Whether the first steps are taught by the teacher's path."""
        return self.config.objective in ("dp_dmd", "no_detach")

    @property
    def first_matched_step(self) -> int:
        """The first student step that the matching gradient may reach."""
        blocked = self.config.objective in ("dp_dmd", "detach_only")
        return self.config.num_anchored_steps if blocked else 0

    def student_update(self, batch: Batch, generator: torch.Generator) -> tuple[Metrics, Samples]:
        """Accumulate the student's gradients: anchored steps, then distribution matching."""
        metrics, x_t, start = {}, batch.noise, 0
        if self.anchors:
            metrics, x_t, start = self._anchored_steps(batch)
        if self.first_matched_step == 0:
            x_t, start = batch.noise, 0
        x0 = self._student_x0(x_t, start, batch, generator, with_gradient=True)
        gradient, matching = self._matching_gradient(x0.detach(), batch, generator)
        self.roles.use("student")
        (self.loss_scale * losses.matching_loss(x0, gradient)).backward()
        return metrics | matching, Samples(x0.detach(), batch)

    def fake_update(self, samples: Samples, generator: torch.Generator) -> Metrics:
        """Accumulate the fake score's gradients on student samples at random noise levels."""
        x0 = samples.x0
        level = self._draw_levels(0, NUM_LEVELS - 1, len(x0), generator)
        alpha, std = level.broadcast_scales
        eps = self._randn_like(x0, generator)
        x_t = alpha * x0 + std * eps
        self.roles.use("fake")
        output = self.network(x_t, level.timesteps, samples.batch.conditional)
        target = training_target(self.network.prediction, x0, eps, alpha, std)
        loss = losses.fake_loss(output, target)
        (self.loss_scale * loss).backward()
        return {"fake_loss": loss.detach()}

    @torch.no_grad()
    def draw_samples(self, batch: Batch, generator: torch.Generator) -> Samples:
        """Fresh student samples for the fake score, drawn as the matching loss draws its own."""
        x0 = self._student_x0(batch.noise, 0, batch, generator, with_gradient=False)
        return Samples(x0, batch)

    def denoise_as(self, role: str, batch: Batch, x_t: Tensor, level: Levels) -> Tensor:
        """x0 of one role: the teacher's is guided, student and fake are conditional only."""
        self.roles.use(role)
        output = guided(
            self.network,
            x_t,
            level.timesteps.expand(len(x_t)),
            batch.conditional,
            batch.unconditional,
            scale=self.teacher_guidance if role == "teacher" else 1.0,
            rescale=self.config.guidance_rescale,
        )
        alpha, std = level.broadcast_scales
        return to_x0(self.network.prediction, output, x_t, alpha, std)

    def _anchored_steps(self, batch: Batch) -> tuple[Metrics, Tensor, int]:
        """Backpropagate L_div of steps 1..m; returns metrics, the detached state, and m.

        Each step starts from the student's own detached state and aims at the teacher's point on
        the one trajectory from the same noise. The graph of a step ends with its backward.
        """
        count = self.config.num_anchored_steps
        targets = self._anchor_targets(batch)
        x_t = batch.noise
        total = error = torch.zeros((), device=x_t.device)
        for i in range(count):
            level = self.levels[i]
            x0 = self.denoise_as("student", batch, x_t, level)
            target = targets[i](x_t)
            loss = losses.diversity_loss(x0, target, level.broadcast_scales[1])
            (self.loss_scale * self.config.diversity_weight * loss).backward()
            total = total + loss.detach()
            difference = (x0.detach() - target).square().mean().sqrt()
            error = error + difference / target.square().mean().sqrt().clamp_min(1e-6)
            x_t = ode_step(x_t, x0.detach(), level, self.levels[i + 1])
        metrics = {"diversity_loss": total / count, "anchor_error": error / count}
        return metrics, x_t, count

    @torch.no_grad()
    def _anchor_targets(self, batch: Batch):
        """For each anchored step a function from the student's state to the x0 it is taught."""
        config, levels = self.config, self.teacher_levels
        per_step = config.effective_teacher_steps // config.num_steps
        stops = [config.effective_anchor_step]
        stops += [per_step * (i + 1) for i in range(1, config.num_anchored_steps)]

        def teacher(x_t: Tensor, level: Levels) -> Tensor:
            return self.denoise_as("teacher", batch, x_t, level)

        states = teacher_path(teacher, batch.noise, levels, stops)
        if config.anchor_target == "denoised":
            found = [s if k == levels.num_steps else teacher(s, levels[k]) for s, k in
                     zip(states, stops, strict=True)]  # fmt: skip
            return [lambda x_t, x0=x0: x0 for x0 in found]
        return [
            lambda x_t, i=i, state=state, stop=stop: chord_x0(
                x_t, state, self.levels[i], levels[stop]
            )
            for i, (state, stop) in enumerate(zip(states, stops, strict=True))
        ]

    def _student_x0(
        self,
        x_t: Tensor,
        start: int,
        batch: Batch,
        generator: torch.Generator,
        *,
        with_gradient: bool,
    ) -> Tensor:
        """The x0 that distribution matching sees, from state `x_t` before step `start`.

        random: the one-step x0 of one random matched step; last: of the last step; all: the end of
        the roll-out with every matched step in the graph (the x0 of the last step, too).
        """
        last = self.config.num_steps - 1
        first = self.first_matched_step
        supervised = last
        if self.config.gradient_steps == "random":
            supervised = int(torch.randint(first, last + 1, (), generator=generator))

        def student(x: Tensor, level: Levels) -> Tensor:
            return self.denoise_as("student", batch, x, level)

        whole = self.config.gradient_steps == "all"
        free_until = first if whole else supervised
        with torch.no_grad():
            x_t = roll(student, x_t, self.levels, start, free_until)
        with torch.set_grad_enabled(with_gradient):
            if whole:
                x_t = roll(student, x_t, self.levels, max(start, first), last)
            return student(x_t, self.levels[supervised])

    @torch.no_grad()
    def _matching_gradient(
        self, x0: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """The DMD gradient at one random noise level per sample, and what to watch of it."""
        flow = isinstance(self.network.schedule, FlowSchedule)
        low, high = (0, NUM_LEVELS - 1) if flow else VP_MATCHING_POSITIONS
        level = self._draw_levels(low, high, len(x0), generator)
        alpha, std = level.broadcast_scales
        x_t = alpha * x0 + std * self._randn_like(x0, generator)
        x0_real = self.denoise_as("teacher", batch, x_t, level)
        x0_fake = self.denoise_as("fake", batch, x_t, level)
        gradient = losses.matching_gradient(x0_real, x0_fake, (x_t if flow else x0) - x0_real)
        return gradient, {
            "matching_gradient": gradient.abs().mean(),
            "score_cosine": losses.score_cosine(x_t, x0_real, x0_fake),
        }

    def _draw_levels(self, low: int, high: int, count: int, generator: torch.Generator) -> Levels:
        positions = torch.randint(low, high + 1, (count,), generator=generator)
        return self._training_levels[to_device(positions, self.network.device)]

    def _randn_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return to_device(torch.randn(x.shape, generator=generator), x.device)


def teacher_grid(student_positions: Tensor, teacher_steps: int) -> Tensor:
    """Positions of the teacher's grid: the student's, refined, where the steps divide evenly."""
    num_steps = len(student_positions) - 1
    if teacher_steps % num_steps == 0:
        return refine_positions(student_positions, teacher_steps // num_steps)
    return trailing_positions(teacher_steps)
