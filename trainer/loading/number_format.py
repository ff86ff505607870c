"""The number format that a network runs in where the user leaves it open.

float16 has three more bits for a number's digits than bfloat16, and less room for large numbers. So
wherever nothing overflows it is nearer to float32: its error is an eighth, which counts most at the
highest noise levels, where a model that predicts eps or v finds x0 by a division by alpha, and
guidance multiplies what is left. Hosts run such a checkpoint in float16 if it is stored so. What
has to be measured is only whether the network overflows. Its error itself would need the network in
float32, too, which is twice the weights, and could say nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ...core.errors import NonFiniteError
from ...core.families import AskedSampling, gains_by_half
from ..device import choose_dtype, dtype_name, release_memory
from ..distributed import Ranks
from ..model.conditioning import Conditioning
from .checkpoint import LoadedCheckpoint

LEVELS = (999.0, 749.0, 500.0, 20.0)
"""Timesteps, the noisiest first."""
LATENT_SIZE = 64
SEED = 0
log = logging.getLogger("dpdmd_studio.loading")
T = TypeVar("T")
Loaded = tuple[LoadedCheckpoint, T, Conditioning]
"""A checkpoint with its denoiser, what its caller had encoded, and one prompt to try it with."""


def number_formats(
    wanted: str, device: torch.device, path: Path, asked: AskedSampling
) -> tuple[torch.dtype, ...]:
    """Formats to try, one after the other: the last is to be used without a trial.

    Args:
        wanted: "auto" or the name of one.
        path: of the checkpoint; its header is read.
        asked: what the user says of the checkpoint.

    Raises:
        CheckpointError: the header cannot be read.
        SettingsError: models of the family are not as asked.
    """
    usual = choose_dtype(wanted, device)
    open_choice = wanted == "auto" and device.type == "cuda" and usual == torch.bfloat16
    return (torch.float16, usual) if open_choice and gains_by_half(path, asked) else (usual,)


def in_first_sound_format(
    formats: Sequence[torch.dtype],
    load: Callable[[torch.dtype], Loaded[T]],
    device: torch.device,
    ranks: Ranks,
) -> Loaded[T]:
    """What `load` gives in the first format in which the network and the prompts do not overflow.

    Raises:
        NonFiniteError: weights or prompts overflow in the last one; of several processes, in any.
    """
    for dtype in formats[:-1]:
        try:
            loaded = load(dtype)
            if not ranks.any(overflows(loaded[0], loaded[2])):
                return loaded
            del loaded
        except NonFiniteError:
            if ranks.size > 1:  # the others wait for this one
                raise
        log.info("The model goes beyond what %s holds: it is loaded again.", dtype_name(dtype))
        release_memory(device)
    if len(formats) > 1:
        log.info("Number format: %s", dtype_name(formats[-1]))
    return load(formats[-1])


@torch.no_grad()
def overflows(checkpoint: LoadedCheckpoint, conditioning: Conditioning) -> bool:
    """Whether the network gives NaN or infinity: a few passes over one small image.

    Args:
        conditioning: any prompt; its first entry is used.
    """
    size = min(checkpoint.detection.resolution // 8, LATENT_SIZE)
    shape = (1, checkpoint.detection.latent_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    call, first = checkpoint.call(), conditioning.index(slice(0, 1))
    return not all(
        bool(torch.isfinite(call(noise.to(call.device), torch.tensor(level), first)).all())
        for level in LEVELS
    )
