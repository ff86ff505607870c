"""The equations of DP-DMD (arXiv:2602.03139) as pure functions of float32 tensors.

Trajectories of the probability-flow ODE: the student's few steps and the teacher's anchor. States
are x_t = alpha * x0 + std * eps, the space the network sees; a `Denoise` function maps (x_t, level)
to x0, and one formula steps VP and flow models alike. Then the three losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...core.diffusion.schedule import Levels

# (x_t (B, C, H, W), level of scalars or of shape (B,)) -> x0 (B, C, H, W)
Denoise = Callable[[Tensor, Levels], Tensor]
# Floor of the DMD gradient's normaliser. Latents have unit scale, so a mean distance to the
# teacher below one percent means there is nothing left to correct.
MIN_NORMALISER = 1e-2
MIN_TARGET = 1e-6


def ode_step(x_t: Tensor, x0: Tensor, level: Levels, next_level: Levels) -> Tensor:
    """The state at `next_level` on the straight line through x_t and x0, shape (B, C, H, W).

    x_s = alpha_s * x0 + std_s * eps with eps = (x_t - alpha_t * x0) / std_t: Euler's method for a
    flow, DDIM with eta = 0 (arXiv:2010.02502, Eq. 12) for a VP schedule.
    """
    alpha, std = level.broadcast_scales
    next_alpha, next_std = next_level.broadcast_scales
    return next_alpha * x0 + (next_std / std) * (x_t - alpha * x0)


def roll(denoise: Denoise, x_t: Tensor, levels: Levels, start: int, end: int) -> Tensor:
    """The state after steps start .. end - 1 of a grid, begun in `x_t`, shape (B, C, H, W)."""
    for i in range(start, end):
        x_t = ode_step(x_t, denoise(x_t, levels[i]), levels[i], levels[i + 1])
    return x_t


def teacher_path(
    denoise: Denoise, noise: Tensor, levels: Levels, stops: Sequence[int]
) -> list[Tensor]:
    """The guided teacher's states after each number of steps in `stops` (increasing).

    The last stop of the paper's method is K and its state the anchor z_K (arXiv:2602.03139, 4.1).
    """
    states: list[Tensor] = []
    x_t, done = noise, 0
    for stop in stops:
        x_t = roll(denoise, x_t, levels, done, stop)
        states.append(x_t)
        done = stop
    return states


def chord_x0(start: Tensor, end: Tensor, level: Levels, end_level: Levels) -> Tensor:
    """The x0 whose one ODE step from `start` at `level` lands on `end`, shape (B, C, H, W).

    x0 = (x_end - r * x_start) / (alpha_end - r * alpha_start), r = std_end / std_start.
    For a flow this is the average velocity (eps - z_K) / (1 - t_k) of arXiv:2602.03139, Eq. 6,
    written as x0 = eps - v. The denominator is positive wherever the end is less noisy.
    """
    alpha, std = level.broadcast_scales
    end_alpha, end_std = end_level.broadcast_scales
    ratio = end_std / std
    return (end - ratio * start) / (end_alpha - ratio * alpha)


def diversity_loss(x0: Tensor, x0_target: Tensor, std: Tensor) -> Tensor:
    """Mean squared velocity error of an anchored step, a scalar.

    L_div = E || v_theta - v~ ||^2 (Eq. 7). For VP and flow alike v differs from its target by
    (x0 - x0_target) / std, so both families share this form; std is 1 at the start.

    Args:
        x0: the student's prediction, (B, C, H, W).
        x0_target: the x0 that leads to the anchor, of `chord_x0`, (B, C, H, W).
        std: noise scale of the step's level, (1 or B, 1, 1, 1).
    """
    return ((x0 - x0_target.detach()) / std).square().mean()


def dmd_gradient(x0_real: Tensor, x0_fake: Tensor, residual: Tensor) -> Tensor:
    """Per-sample normalised distribution-matching gradient, (B, C, H, W).

    g = (x0_fake - x0_real) / max(mean |p|, floor)    (Eq. 5; weight as in arXiv:2311.18828, Eq. 8)

    Args:
        x0_real: the guided teacher's prediction at the re-noised sample.
        x0_fake: the fake score's prediction there.
        residual: p, whose per-sample mean size normalises (`Schedule.dmd_residual`).
    """
    size = residual.abs().mean(dim=(1, 2, 3), keepdim=True)
    return ((x0_fake - x0_real) / size.clamp_min(MIN_NORMALISER)).detach()


def dmd_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose derivative in x0 is `gradient` / numel: 0.5 * MSE(x0, stopgrad(x0 - g))."""
    return 0.5 * functional.mse_loss(x0, (x0 - gradient).detach())


def fake_loss(output: Tensor, target: Tensor) -> Tensor:
    """Denoising loss of the fake score in the network's own prediction, a scalar."""
    return functional.mse_loss(output, target.detach())


@torch.no_grad()
def score_cosine(x_t: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Mean cosine between the real and the fake direction away from x0, a scalar in [-1, 1]."""
    real, fake = (x_t - x0_real).flatten(1), (x_t - x0_fake).flatten(1)
    return functional.cosine_similarity(real, fake, dim=1).mean()


@torch.no_grad()
def relative_error(x0: Tensor, target: Tensor) -> Tensor:
    """Root mean square of x0 - target over that of the target, a scalar."""
    difference = (x0.detach() - target).square().mean().sqrt()
    return difference / target.square().mean().sqrt().clamp_min(MIN_TARGET)
