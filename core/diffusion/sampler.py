"""The few-step sampler, in the k-diffusion call contract that every host speaks.

`model(x, sigma, **extra_args)` returns the clean latent x0; `sigmas` decrease, usually to 0. In
that contract a straight ODE step from sigma to sigma' is the same formula for VP and flow models:

    x' = x0 + (sigma' / sigma) * (x - x0)

which is Euler's method (arXiv:2206.00364, Algorithm 2) and, on a VP schedule, DDIM with eta = 0.
The re-noising step of consistency and DMD2 students takes x0 and adds fresh noise of level sigma':

    VP: x' = x0 + sigma' * noise        flow: x' = (1 - sigma') * x0 + sigma' * noise
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError

Denoiser = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def sample_few_step(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    solver: str = "ode",
    noise_sampler: NoiseSampler | None = None,
    flow: bool = False,
) -> Tensor:
    """The sample at the end of `sigmas`, shape (B, C, H, W): one evaluation of `model` per step.

    Hosts also ask for a part of a trajectory: `sigmas` may end above 0, and fewer than two of them
    leave `x` as it is.

    Args:
        model: called as model(x, sigma, **extra_args) with sigma of shape (B,); returns x0.
        x: the start, noised to sigmas[0], shape (B, C, H, W).
        sigmas: decreasing noise levels, none below 0, shape (N + 1,).
        extra_args: handed to every call of `model`.
        callback: called once a step with x, i, sigma, sigma_hat and denoised.
        disable: part of the contract (progress bars); the sampler shows none.
        solver: "ode", or "sde" for the re-noising step.
        noise_sampler: called as noise_sampler(sigma, sigma_next) for unit noise shaped like x; the
            sde solver needs it, so that noise comes from the host's seed.
        flow: whether the model is a flow; only the sde solver differs.

    Raises:
        SettingsError: `sigmas` do not decrease, or go below 0, or there is no such solver.
    """
    check_sigmas(sigmas)
    _check_solver(solver, noise_sampler)
    arguments = dict(extra_args or {})
    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma * ones, **arguments)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        if noise_sampler is None or solver == "ode":
            x = denoised + (sigma_next / sigma) * (x - denoised)
        elif sigma_next > 0:
            x = renoised(denoised, sigma_next, noise_sampler(sigma, sigma_next), flow)
        else:
            x = denoised
    return x


def renoised(x0: Tensor, sigma: Tensor | float, noise: Tensor, flow: bool) -> Tensor:
    """x0 with fresh noise of level sigma, in the k-diffusion convention, shape (B, C, H, W)."""
    return (1 - sigma) * x0 + sigma * noise if flow else x0 + sigma * noise


def _check_solver(solver: str, noise_sampler: NoiseSampler | None) -> None:
    if solver not in ("ode", "sde"):
        raise SettingsError(f"There is no solver {solver!r}; expected ode or sde.")
    if solver == "sde" and noise_sampler is None:
        raise SettingsError("The sde solver adds fresh noise and needs a noise_sampler.")


def check_sigmas(sigmas: Tensor) -> None:
    """Raise SettingsError unless `sigmas` decrease and stay at or above 0."""
    values = sigmas.tolist()  # one transfer, not one a level
    decreasing = all(high > low for high, low in pairwise(values))
    if not decreasing or not all(0 <= value < math.inf for value in values):
        raise SettingsError(
            f"The noise levels {values} cannot be sampled: expected decreasing numbers, none "
            "below 0."
        )


def partial_sigmas(sigmas: Tensor, denoise: float) -> Tensor:
    """The part of a trained grid that changes an image by `denoise`, for image to image.

    Step i of N starts at strength 1 - i / N; the start nearest to `denoise` is taken (the stronger
    one on a tie), so that only levels the student was trained at are evaluated.

    Args:
        sigmas: the trained grid, shape (N + 1,).
        denoise: share of the trajectory to redo, in (0, 1].
    """
    if not 0 < denoise <= 1:
        raise SettingsError(f"denoise is {denoise}; expected more than 0 and at most 1.")
    num_steps = len(sigmas) - 1
    distances = [abs(1 - i / num_steps - denoise) for i in range(num_steps)]
    return sigmas[distances.index(min(distances)) :]


def sigmas_from(sigmas: Tensor, sigma_start: float) -> Tensor:
    """A grid that starts exactly at `sigma_start` and goes on with the trained levels below it."""
    below = sigmas[sigmas < sigma_start]
    return torch.cat([sigmas.new_tensor([sigma_start]), below])
