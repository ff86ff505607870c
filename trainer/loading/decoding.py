"""From latents to images: a checkpoint's decoder, or a linear map where it has none."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ...core.errors import NonFiniteError
from .checkpoint import LoadedCheckpoint
from .vae import LATENT_TO_PIXELS, SCALE_KEY, SHIFT_KEY, LatentDecoder

logger = logging.getLogger("dpdmd_studio.loading")


@torch.no_grad()
def decode(checkpoint: LoadedCheckpoint, latents: Tensor) -> np.ndarray:
    """Images, uint8, shape (B, H, W, 3), of the network's latents (B, C, h, w).

    One image at a time, in fp32 on the CPU and bf16 on GPUs: never fp16, in which SDXL's VAE
    overflows. The decoder is loaded for this call and dropped after it.
    """
    decoder = checkpoint.decoder
    if decoder is not None:
        try:
            return _images(_decode_each(checkpoint, decoder, latents))
        except NonFiniteError as error:
            logger.warning("%s Images are shown through a linear map instead.", error)
    return _images([linear_preview(checkpoint, item[None]) for item in latents])


def _decode_each(
    checkpoint: LoadedCheckpoint, decoder: LatentDecoder, latents: Tensor
) -> list[Tensor]:
    device = checkpoint.device
    dtype = torch.bfloat16 if device.type in ("cuda", "xpu") else torch.float32
    model = decoder.component.load(dtype, device)
    inputs = vae_latents(checkpoint, decoder, latents.float())
    return [model(item[None].to(device, dtype)).float().cpu() for item in inputs]


def vae_latents(checkpoint: LoadedCheckpoint, decoder: LatentDecoder, latents: Tensor) -> Tensor:
    """The decoder's input: the VAE's latents, for a tiny VAE then (. - shift) * scale."""
    if decoder.takes_network_latents:
        return latents
    weights = decoder.component.weights
    latents = checkpoint.half.vae_latents(latents)
    if SCALE_KEY in weights.infos:
        shift = weights.read(SHIFT_KEY).item() if SHIFT_KEY in weights.infos else 0.0
        latents = (latents - shift) * weights.read(SCALE_KEY).item()
    return latents


def linear_preview(checkpoint: LoadedCheckpoint, latents: Tensor) -> Tensor:
    """A rough image by one linear map per latent pixel, RGB in [-1, 1], (B, 3, 8h, 8w)."""
    factors = torch.tensor(checkpoint.family.vae.rgb_factors)
    rgb = torch.einsum("bchw,cr->brhw", latents.float().cpu(), factors)
    return torch.nn.functional.interpolate(rgb, scale_factor=LATENT_TO_PIXELS, mode="nearest")


def _images(images: list[Tensor]) -> np.ndarray:
    rgb = torch.cat(images).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return rgb.permute(0, 2, 3, 1).contiguous().numpy()
