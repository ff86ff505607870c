"""Latents for given prompts and seeds, through the same sampler that hosts use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...core.prediction import to_x0
from ...core.sampler import sample_few_step
from ...core.schedule import FlowSchedule, Levels
from .batches import start_noise
from .conditioning import Conditioning
from .guidance import guided
from .network import NetworkCall


def host_denoiser(
    call: NetworkCall,
    conditional: Conditioning,
    unconditional: Conditioning,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
) -> Callable[[Tensor, Tensor], Tensor]:
    """model(x, sigma) -> x0 in the k-diffusion contract, for a batch of prompts.

    Hosts hold a VP state as x = x0 + sigma * eps; the network sees alpha * x.
    """
    flow = isinstance(call.schedule, FlowSchedule)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        level = Levels.at_sigmas(call.schedule, sigma)
        alpha, std = level.broadcast_scales
        x_t = x if flow else alpha * x
        output = guided(
            call,
            x_t,
            level.timesteps,
            conditional,
            unconditional,
            scale=guidance_scale,
            rescale=guidance_rescale,
        )
        return to_x0(call.prediction, output, x_t, alpha, std)

    return model


@torch.no_grad()
def sample_latents(
    call: NetworkCall,
    conditional: Conditioning,
    unconditional: Conditioning,
    seeds: Sequence[int],
    latent_shape: tuple[int, int, int],
    sigmas: Tensor,
    *,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
) -> Tensor:
    """One latent per prompt and seed, float32 on the CPU, shape (B, C, h, w).

    Args:
        conditional: prompts, batch size B = len(seeds).
        unconditional: negative prompt, batch size 1 or B.
        seeds: seed of each picture's start noise; it alone decides the noise.
        sigmas: decreasing levels ending in 0, shape (N + 1,); the schedule's own or a recipe's.
    """
    negative = unconditional
    if len(negative) == 1:
        negative = negative.repeat(len(seeds))
    noise = torch.stack([start_noise(seed, latent_shape) for seed in seeds])
    sigmas = sigmas.to("cpu", torch.float32)
    if not isinstance(call.schedule, FlowSchedule):
        noise = noise * (1 + sigmas[0] ** 2).sqrt()
    model = host_denoiser(
        call,
        conditional.to(call.device),
        negative.to(call.device),
        guidance_scale,
        guidance_rescale,
    )
    return sample_few_step(model, noise.to(call.device), sigmas.to(call.device)).cpu()
