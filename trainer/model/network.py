"""Calling a denoiser: fp32 latents in, fp32 prediction out, the network in its own dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.diffusion.schedule import FlowSchedule, Schedule, VPSchedule
from ...core.families import Family
from .conditioning import Conditioning

PIXELS_PER_LATENT = 8


def predict(
    network: nn.Module, family: Family, x_t: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> Tensor:
    """The network's raw output for noised latents, fp32, shape (B, C, H, W).

    Args:
        network: a UNet2DConditionModel or SD3Transformer2DModel, possibly with adapters.
        family: which call it takes.
        x_t: noised latents in the network's own space, shape (B, C, H, W).
        timesteps: 0..999 (VP) or 1000 * sigma (flow), fp32, shape (B,) or ().
        conditioning: of the same batch size.
    """
    dtype, batch = network_dtype(network), len(x_t)
    conditioning = conditioning.to(x_t.device)
    inputs: dict[str, object] = {"encoder_hidden_states": conditioning.context.to(dtype)}
    if family.network == "SD3Transformer2DModel":
        assert conditioning.pooled is not None
        inputs["pooled_projections"] = conditioning.pooled.to(dtype)
    elif conditioning.pooled is not None:
        sized = conditioning
        if conditioning.time_ids is None:
            height, width = (size * PIXELS_PER_LATENT for size in x_t.shape[-2:])
            sized = conditioning.with_size(height, width)
        assert sized.pooled is not None
        inputs["added_cond_kwargs"] = {"text_embeds": sized.pooled.to(dtype),
                                       "time_ids": sized.time_ids}  # fmt: skip
    steps = timesteps.to(x_t.device).expand(batch)
    # Adapters are kept in fp32; under autocast their products run in the network's dtype, too. Each
    # is used once a call: a cache of their casts would only hold memory.
    low = dtype != torch.float32
    with torch.autocast(x_t.device.type, dtype, enabled=low, cache_enabled=False):
        return network(x_t.to(dtype), timestep=steps, return_dict=False, **inputs)[0].float()


def network_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of the frozen network, whatever its adapters have.

    The first and last layers never get LoRA.
    """
    layer = network.conv_out if hasattr(network, "conv_out") else network.proj_out
    return layer.weight.dtype  # type: ignore[union-attr, return-value]


def schedule_of(family: Family, zero_terminal_snr: bool = False) -> Schedule:
    """The noise schedule a family was trained with."""
    if family.schedule == "flow":
        return FlowSchedule(family.flow_shift)
    return VPSchedule(zero_terminal_snr)


class NetworkCall:
    """A denoiser with everything a sampler or the trainer needs to know of it."""

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        prediction: str,
        schedule: Schedule,
        device: torch.device | str,
    ) -> None:
        self.network, self.family, self.prediction = network, family, prediction
        self.schedule, self.device = schedule, torch.device(device)

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Prediction for x_t (B, C, H, W) at timesteps (B,), fp32."""
        return predict(self.network, self.family, x_t, timesteps, conditioning)
