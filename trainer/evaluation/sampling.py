"""Latents for given prompts and seeds, through the same sampler that hosts use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.prediction import to_x0
from ...core.diffusion.sampler import sample_few_step
from ...core.diffusion.schedule import FlowSchedule, Levels, Schedule
from ..model.conditioning import PromptPair
from ..model.network import NetworkCall, guided
from ..training.batches import initial_noise

TEACHER_STEPS = 28
"""Steps in which a checkpoint is drawn that states none itself."""


@dataclass(frozen=True)
class Trajectory:
    """Which sigmas sampling goes through, and how strongly it is guided.

    Attributes:
        sigmas: decreasing, shape (N + 1,); the schedule's own or a recipe's.
    """

    sigmas: Tensor
    guidance: Guidance = NO_GUIDANCE


def host_denoiser(
    call: NetworkCall,
    prompts: PromptPair,
    guidance: Guidance,
) -> Callable[[Tensor, Tensor], Tensor]:
    """model(x, sigma) -> x0 in the k-diffusion contract, for a batch of prompts.

    Hosts hold a VP state as x = x0 + sigma * eps; the network sees alpha * x.
    """
    flow = isinstance(call.schedule, FlowSchedule)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        level = Levels.at_sigmas(call.schedule, sigma)
        alpha, std = level.broadcast_scales
        x_t = x if flow else alpha * x
        output = guided(call, x_t, level.timesteps, prompts, guidance)
        return to_x0(call.prediction, output, x_t, alpha, std)

    return model


def initial_latents(
    schedule: Schedule, seeds: Sequence[int], latent_shape: tuple[int, int, int], sigma: float
) -> Tensor:
    """The initial noise of these seeds at `sigma`, on the CPU, (B, C, h, w).

    A seed alone decides its noise, whatever stands beside it in the batch.
    """
    noise = torch.stack([initial_noise(seed, latent_shape) for seed in seeds])
    return noise if isinstance(schedule, FlowSchedule) else noise * (1 + sigma**2) ** 0.5


@torch.no_grad()
def integrate(
    call: NetworkCall, latents: Tensor, prompts: PromptPair, trajectory: Trajectory
) -> Tensor:
    """Latents moved along the whole trajectory, float32 on the CPU, shape (B, C, h, w).

    Args:
        latents: in the hosts' convention (VP: x0 + sigma * eps), shape (B, C, h, w).
        prompts: batch size B.
    """
    model = host_denoiser(call, prompts.to(call.device), trajectory.guidance)
    sigmas = trajectory.sigmas.to(call.device, torch.float32)
    return sample_few_step(model, latents.to(call.device), sigmas).cpu()


def sample_latents(
    call: NetworkCall,
    prompts: PromptPair,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    trajectory: Trajectory,
) -> Tensor:
    """One latent per prompt and seed, float32 on the CPU, shape (B, C, h, w).

    Args:
        prompts: batch size B = len(seeds).
        seeds: seed of each image's initial noise; it alone decides the noise.
        trajectory: down to sigma 0.
    """
    start = initial_latents(call.schedule, seeds, latent_shape, float(trajectory.sigmas[0]))
    return integrate(call, start, prompts, trajectory)
