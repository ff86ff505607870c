"""The three losses of DP-DMD (arXiv:2602.03139) as pure functions of float32 tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Floor of the DMD gradient's normaliser. Latents have unit scale, so a mean distance to the
# teacher below one percent means there is nothing left to correct.
MIN_NORMALISER = 1e-2
MIN_TARGET = 1e-6


def diversity_loss(x0: Tensor, x0_target: Tensor, std: Tensor) -> Tensor:
    """Mean squared velocity error of an anchored step, a scalar.

    L_div = E || v_theta - v~ ||^2 (Eq. 7). For VP and flow alike v differs from its target by
    (x0 - x0_target) / std, so both families share this form; std is 1 at the start.

    Args:
        x0: the student's prediction, (B, C, H, W).
        x0_target: the x0 of the chord to the anchor, (B, C, H, W).
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
