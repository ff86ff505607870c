"""DP-DMD (arXiv:2602.03139), Algorithm 1: the student's update, and the fake score's.

The first steps learn by target prediction towards where the teacher's own trajectory goes, so the
diversity of the noise stays; the later ones refine quality by distribution matching (DMD), whose
gradient never reaches the first. Latents are (B, C, H, W) in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.prediction import to_x0, training_target
from ...core.diffusion.schedule import Levels
from . import ablations
from . import equations as eq
from .equations import Denoise
from .objective import Draws, Grids, Objective

Metrics = dict[str, Tensor]


class Network(Protocol):
    """One frozen network in three roles, bound to the prompts of the rows at hand."""

    @property
    def prediction(self) -> str:
        """What it predicts: one of core.diffusion.prediction.PREDICTIONS."""
        ...

    def __call__(
        self, role: str, x_t: Tensor, level: Levels, guidance: Guidance = NO_GUIDANCE
    ) -> Tensor:
        """The prediction of "teacher", "student" or "fake" at x_t (B, C, H, W), float32."""
        ...

    def backward(self, role: str, loss: Tensor, weight: float = 1.0) -> None:
        """Add the gradients of weight * loss to the parameters of `role`."""
        ...


def student_update(
    network: Network, noise: Tensor, draws: Draws, objective: Objective, grids: Grids
) -> tuple[Metrics, Tensor]:
    """Algorithm 1, lines of the student: leaves its gradients; returns metrics and samples x0.

    L = L_DMD(x_theta) + lambda * L_div    (Eq. 8)

    Args:
        noise: the start of each image, unit variance, (B, C, H, W).
        draws: the DMD-supervised step, and the level and noise of the re-noised samples.
    """
    student = denoiser(network, "student")
    teacher = denoiser(network, "teacher", objective.teacher_guidance)
    guidance = objective.real_guidance or objective.teacher_guidance
    real = denoiser(network, "teacher", guidance.where(draws.guided))
    fake = denoiser(network, "fake")
    metrics, x_t = {}, noise

    # Target prediction: from the same noise, step i <= m aims at the teacher's state (Eq. 6, 7).
    if objective.anchors:
        div_losses, errors = [], []
        for i, aim in enumerate(anchor_targets(teacher, noise, objective, grids)):
            level = grids.student[i]
            x0, target = student(x_t, level), aim(x_t)
            loss = eq.diversity_loss(x0, target, level.broadcast_scales[1])
            network.backward("student", loss, objective.diversity_weight)
            div_losses.append(loss.detach())
            errors.append(eq.relative_error(x0, target))
            x_t = eq.ode_step(x_t, x0.detach(), level, grids.student[i + 1])  # stopgrad(z_1)
        metrics["diversity_loss"] = torch.stack(div_losses).mean()
        metrics["anchor_error"] = torch.stack(errors).mean()

    # Roll-out to x_theta; of its steps only the supervised one carries a gradient.
    start = objective.rollout_start  # m, so that the DMD gradient is blocked at steps 1..m
    steps = range(start, draws.supervised + 1)
    x0 = roll_out(student, x_t if start else noise, steps, objective, grids)

    # Distribution matching: real against fake score at the re-noised sample (Eq. 5).
    with torch.no_grad():
        sample = x0.detach()
        alpha, std = draws.level.broadcast_scales
        x_t = alpha * sample + std * draws.noise
        x0_real = real(x_t, draws.level)
        x0_fake = fake(x_t, draws.level)
        residual = grids.schedule.dmd_residual(x_t, sample, x0_real)
        gradient = eq.dmd_gradient(x0_real, x0_fake, residual)
        metrics["matching_gradient"] = gradient.abs().mean()
        metrics["score_cosine"] = eq.score_cosine(x_t, x0_real, x0_fake)
    network.backward("student", eq.dmd_loss(x0, gradient))
    return metrics, sample


@torch.no_grad()
def student_samples(
    network: Network, noise: Tensor, supervised: int, objective: Objective, grids: Grids
) -> Tensor:
    """Fresh samples x0 for the fake score, drawn as the DMD gradient sees the student's own."""
    steps = range(supervised + 1)
    return roll_out(denoiser(network, "student"), noise, steps, objective, grids)


def fake_update(network: Network, x0: Tensor, draws: Draws) -> Metrics:
    """Algorithm 1, lines of the fake score: denoising of student samples at random levels."""
    alpha, std = draws.level.broadcast_scales
    x_t = alpha * x0 + std * draws.noise
    output = network("fake", x_t, draws.level)
    target = training_target(network.prediction, x0, draws.noise, alpha, std)
    loss = eq.fake_loss(output, target)
    network.backward("fake", loss)
    return {"fake_loss": loss.detach()}


def roll_out(
    student: Denoise, x_t: Tensor, steps: range, objective: Objective, grids: Grids
) -> Tensor:
    """x_theta: the student's x0 at the DMD-supervised step, (B, C, H, W).

    Args:
        x_t: the state before the first of the steps.
        steps: those to take; the last one is supervised.
    """
    levels, supervised = grids.student, steps[-1]
    if objective.supervision == "all":
        return ablations.all_steps(student, x_t, levels, steps.start, objective.first_dmd_step)
    with torch.no_grad():
        x_t = eq.roll(student, x_t, levels, steps.start, supervised)
    return student(x_t, levels[supervised])


def denoiser(network: Network, role: str, guidance: Guidance = NO_GUIDANCE) -> Denoise:
    """(x_t, level) -> x0 of one role."""

    def x0(x_t: Tensor, level: Levels) -> Tensor:
        output = network(role, x_t, level, guidance)
        alpha, std = level.broadcast_scales
        return to_x0(network.prediction, output, x_t, alpha, std)

    return x0


@torch.no_grad()
def anchor_targets(
    teacher: Denoise, noise: Tensor, objective: Objective, grids: Grids
) -> list[ablations.Aim]:
    """For each anchored step a function from the student's state to the x0 that it is taught."""
    levels, stops = grids.teacher, grids.anchor_steps
    states = eq.teacher_path(teacher, noise, levels, stops)
    if objective.anchor_target == "denoised":
        return [ablations.denoised(teacher, state, levels, stop)
                for state, stop in zip(states, stops, strict=True)]  # fmt: skip
    return [
        partial(eq.chord_x0, end=state, level=grids.student[i], end_level=levels[stop])
        for i, (state, stop) in enumerate(zip(states, stops, strict=True))
    ]
