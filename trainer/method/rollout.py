"""Trajectories of the probability-flow ODE: the student's few steps and the teacher's anchor.

States are x_t = alpha * x0 + std * eps in float32, the space the network sees. A `Denoise` function
maps (x_t, level) to x0. One formula steps VP and flow models alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...core.diffusion.schedule import Levels

# (x_t (B, C, H, W), level of scalars or of shape (B,)) -> x0 (B, C, H, W)
Denoise = Callable[[Tensor, Levels], Tensor]


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
