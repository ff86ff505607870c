"""From latents to images: a checkpoint's decoder, or a linear map where it has none."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import NonFiniteError
from ..device import (
    free_memory,
    has_fast_bf16,
    is_out_of_memory,
    measured_peak,
    release_memory,
)
from .checkpoint import LoadedCheckpoint
from .vae import LATENT_TO_PIXELS, SCALE_KEY, SHIFT_KEY, LatentDecoder

TILE, OVERLAP, PROBE = 64, 16, 32
"""Latent pixels along a side: of a tile, of what two share, of the piece that tells the need."""
USED_SHARE = 0.85
"""Of the free memory: larger pictures may take other kernels, and an allocator leaves gaps."""
IN_TILES = (
    "The device has too little memory free to decode a whole image: images are decoded in tiles, "
    "which changes their colours a little."
)
ON_CPU = "The device has too little memory free to decode images: the CPU does it, which is slow."
logger = logging.getLogger("dpdmd_studio.loading")


@torch.no_grad()
def decode(
    checkpoint: LoadedCheckpoint, latents: Tensor, what: str = "", *, measured: bool = False
) -> np.ndarray:
    """Images, uint8, shape (B, H, W, 3), of the network's latents (B, C, h, w).

    One image at a time, in the format of `decoder_dtype`. The decoder is loaded for this call and
    dropped after it. On a device that has too little memory free for a whole image all are decoded
    in tiles, and where these are too large, on the CPU.

    Args:
        what: whose latents these are, for messages.
        measured: whether the images are to be measured, beside others that this decoder made: if it
            fails, no linear map takes its place.

    Raises:
        NonFiniteError: latents hold NaN or infinity, of which no image can be made; or the decoder
            makes them, and the images are to be measured.
    """
    _check_latents(latents, checkpoint.dtype, what)
    decoder = checkpoint.decoder
    if decoder is not None:
        try:
            return vae_images(checkpoint, decoder, latents)
        except NonFiniteError as error:
            if measured:
                raise NonFiniteError(f"{error} Name a sound one with --vae.") from error
            logger.warning("%s Images are shown through a linear map instead.", error)
    return _images([linear_preview(checkpoint, item[None]) for item in latents])


@torch.no_grad()
def vae_images(checkpoint: LoadedCheckpoint, decoder: LatentDecoder, latents: Tensor) -> np.ndarray:
    """As `decode`, by this decoder of the checkpoint alone.

    Raises:
        NonFiniteError: the decoder makes NaN or infinity of the latents.
    """
    return _images(_decode_each(checkpoint, decoder, latents))


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
    """RGB of each, (1, 3, H, W), all in one way: pictures of a set are compared with each other."""
    inputs = vae_latents(checkpoint, decoder, latents.float())
    device, tiled = checkpoint.device, False
    large = max(inputs.shape[-2:]) > TILE
    model: nn.Module | None = None
    images: list[Tensor] = []
    while len(images) < len(inputs):
        item = inputs[len(images) : len(images) + 1]
        try:
            if model is None:
                model = decoder.component.load(decoder_dtype(device), device)
                if large and not _fits(model, item, device):
                    tiled = True
                    logger.info("%s", IN_TILES)
            whole_or_tiles = decode_tiles if tiled else _decoded
            images.append(whole_or_tiles(model, item, device))
            continue
        except RuntimeError as error:
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
        images.clear()
        if large and not tiled and model is not None:
            tiled = True
            logger.info("%s", IN_TILES)
        else:
            device, tiled, model = torch.device("cpu"), False, None
            logger.info("%s", ON_CPU)
        release_memory(checkpoint.device)
    if not all(bool(torch.isfinite(image).all()) for image in images):
        raise NonFiniteError("The VAE makes NaN or infinity of sound latents, so it is damaged.")
    return images


def decoder_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device is fast in it, else fp32: never fp16, in which SDXL's VAE overflows."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def _decoded(model: nn.Module, latents: Tensor, device: torch.device) -> Tensor:
    """RGB, float32 on the CPU, of a decoder on the device and latents anywhere."""
    return model(latents.to(device, decoder_dtype(device))).float().cpu()


def _fits(model: nn.Module, latents: Tensor, device: torch.device) -> bool:
    """Whether the device has room to decode the whole, as far as a small piece of it tells."""
    free = free_memory(device)
    if free is None:
        return True
    piece = latents[..., :PROBE, :PROBE]
    with measured_peak(device) as peak:
        _decoded(model, piece, device)
    return (peak() or 0) * (latents.numel() / piece.numel()) <= USED_SHARE * free


def decode_tiles(model: nn.Module, latents: Tensor, device: torch.device) -> Tensor:
    """RGB, float32 on the CPU, (1, 3, H, W), of latents (1, C, h, w), a tile at a time.

    Tiles overlap and are blended. A decoder's norms and its attention see one tile alone, so that
    colours come out a little otherwise than in the whole.
    """
    height, width = latents.shape[-2:]
    corners = [(top, left) for top in _tile_starts(height) for left in _tile_starts(width)]
    tiles = [
        _decoded(model, latents[..., top : top + TILE, left : left + TILE], device)
        for top, left in corners
    ]
    scale = tiles[0].shape[-1] // min(TILE, width)
    total = torch.zeros(1, 3, height * scale, width * scale)
    weight = torch.zeros(height * scale, width * scale)
    for (top, left), tile in zip(corners, tiles, strict=True):
        rows = slice(top * scale, top * scale + tile.shape[-2])
        columns = slice(left * scale, left * scale + tile.shape[-1])
        ramp = _ramp(tile.shape[-2], scale)[:, None] * _ramp(tile.shape[-1], scale)
        total[..., rows, columns] += tile * ramp
        weight[rows, columns] += ramp
    return total / weight


def _tile_starts(length: int) -> list[int]:
    """Where tiles begin along a side, the last one flush with its end."""
    last = max(0, length - TILE)
    return [*range(0, last, TILE - OVERLAP), last]


def _ramp(length: int, scale: int) -> Tensor:
    """A tile's weight along one side, rising from both ends over the overlap."""
    ends, overlap = torch.arange(1, length + 1), OVERLAP * scale
    return torch.minimum(ends, ends.flip(0)).clamp(max=overlap) / overlap


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
    rgb += torch.tensor(checkpoint.family.vae.rgb_bias)[:, None, None]
    return torch.nn.functional.interpolate(rgb, scale_factor=LATENT_TO_PIXELS, mode="nearest")


def _images(images: list[Tensor]) -> np.ndarray:
    rgb = torch.cat(images).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return rgb.permute(0, 2, 3, 1).contiguous().numpy()
