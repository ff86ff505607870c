"""Data N(mean, std^2) per element: every prediction, score and trajectory in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dpdmd_studio.core.diffusion.schedule import Levels
from torch import Tensor


@dataclass(frozen=True)
class GaussianOracle:
    """The ideal denoiser of independent normal data."""

    mean: float = 0.7
    std: float = 0.6

    def x0(self, x_t: Tensor, level: Levels) -> Tensor:
        """E[x0 | x_t] for x_t = alpha * x0 + sigma * eps."""
        alpha, noise = level.broadcast_scales
        variance = alpha**2 * self.std**2 + noise**2
        return self.mean + alpha * self.std**2 * (x_t - alpha * self.mean) / variance

    def follow(self, x_t: Tensor, level: Levels, end: Levels) -> Tensor:
        """The exact probability-flow ODE from `level` to `end`.

        The flow keeps a sample's quantile: (x - alpha * mean) / sqrt(alpha^2 std^2 + sigma^2).
        """

        def parts(at: Levels) -> tuple[Tensor, Tensor]:
            alpha, noise = at.broadcast_scales
            return alpha * self.mean, (alpha**2 * self.std**2 + noise**2).sqrt()

        (centre, width), (end_centre, end_width) = parts(level), parts(end)
        return end_centre + end_width * (x_t - centre) / width


def from_x0(prediction: str, x0: Tensor, x_t: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """The network output that stands for `x0`: the inverse of `to_x0`."""
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return (x_t - alpha * x0) / std
    return (alpha * x_t - x0 if prediction == "v" else x_t - x0) / std


def grid(schedule, positions) -> Levels:
    """Levels of a schedule at a list of positions."""
    return Levels.at_positions(schedule, torch.as_tensor(positions, dtype=torch.float64))
