"""From latents to images: a checkpoint's decoder, or a linear map where it has none."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ...core.errors import NonFiniteError
from ..device import has_fast_bf16
from .checkpoint import LoadedCheckpoint
from .vae import LATENT_TO_PIXELS, SCALE_KEY, SHIFT_KEY, LatentDecoder

logger = logging.getLogger("dpdmd_studio.loading")


@torch.no_grad()
def decode(checkpoint: LoadedCheckpoint, latents: Tensor, what: str = "") -> np.ndarray:
    """Images, uint8, shape (B, H, W, 3), of the network's latents (B, C, h, w).

    One image at a time, in the format of `decoder_dtype`. The decoder is loaded for this call and
    dropped after it.

    Args:
        what: whose latents these are, for messages.

    Raises:
        NonFiniteError: latents hold NaN or infinity, of which no image can be made.
    """
    _check_latents(latents, checkpoint.dtype, what)
    decoder = checkpoint.decoder
    if decoder is not None:
        try:
            return _images(_decode_each(checkpoint, decoder, latents))
        except NonFiniteError as error:
            logger.warning("%s Images are shown through a linear map instead.", error)
    return _images([linear_preview(checkpoint, item[None]) for item in latents])


def _check_latents(latents: Tensor, dtype: torch.dtype, what: str = "") -> None:
    """NonFiniteError if some of the latents (B, ...) are no numbers, with what may help.

    Args:
        dtype: that the network computed them in.
        what: whose latents these are, for the message.
    """
    wrong = int((~finite_rows(latents)).sum())
    if wrong:
        of = f"{what}: " if what else ""
        raise NonFiniteError(
            f"{of}{wrong} of {len(latents)} images cannot be drawn, since their latents hold NaN "
            f"or infinity. {overflow_advice(dtype)}"
        )


def finite_rows(latents: Tensor) -> Tensor:
    """Whether each of the latents (B, ...) is free of NaN and infinity, shape (B,)."""
    return torch.isfinite(latents).flatten(1).all(dim=1)


def overflow_advice(dtype: torch.dtype) -> str:
    """What to do where a network that computes in `dtype` gives no numbers."""
    if dtype == torch.float16:
        return "The model goes beyond what float16 holds: choose --dtype bfloat16 or float32."
    return (
        "Lower what is unusually high: weights in brackets, guidance, a LoRA's strength. If "
        "nothing is, the checkpoint or LoRA is damaged."
    )


def _decode_each(
    checkpoint: LoadedCheckpoint, decoder: LatentDecoder, latents: Tensor
) -> list[Tensor]:
    device = checkpoint.device
    dtype = decoder_dtype(device)
    model = decoder.component.load(dtype, device)
    inputs = vae_latents(checkpoint, decoder, latents.float())
    images = [model(item[None].to(device, dtype)).float().cpu() for item in inputs]
    if not all(bool(torch.isfinite(image).all()) for image in images):
        raise NonFiniteError("The VAE makes NaN or infinity of sound latents, so it is damaged.")
    return images


def decoder_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device is fast in it, else fp32: never fp16, in which SDXL's VAE overflows."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


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
