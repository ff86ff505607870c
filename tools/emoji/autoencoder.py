"""Stage `autoencoder`: TAESD's structure, slimmer where it is dear, trained on scenes as they come.

Hosts load the parts with the loaders that they have for TAESD with 16 latent channels. Left-out
channels are zero rows and columns of the full layout, exactly. The latents that the denoiser sees
are asked to have mean 0 and variance 1 by channel, and the decoder learns with noise on them, so
that what a denoiser gets slightly wrong is still drawn cleanly.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from dpdmd_studio.trainer.toys.emoji import captions
from shapes_teacher_common import Training, device, part
from shapes_teacher_vae import LATENT_CHANNELS, Block, Clamp, Codec, conv
from torch import Tensor, nn
from torch.nn import functional

from . import shipped
from .drawing import Drawer, anywhere

BATCH, CYCLES, PEAK, DECAY = 32, (4000,), 1.5e-3, 0.998
NARROW_CYCLES = (1300,)
"""Updates with four latent channels, which begin with what the wide one has learned."""
LATENT_NOISE, NARROW = 0.12, 4


class Taesd(Codec):
    """Encoder and decoder between images in [0, 1] and 16 x H/8 x W/8 latents."""

    def __init__(self, latents: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.taesd_encoder = nn.Sequential(
            conv(3, 32), Block(32),
            conv(32, 48, 2, False), Block(48), Block(48), Block(48),
            conv(48, 64, 2, False), Block(64), Block(64), Block(64),
            conv(64, 64, 2, False), Block(64), Block(64), Block(64),
            conv(64, latents),
        )  # fmt: skip
        self.taesd_decoder = nn.Sequential(
            Clamp(), conv(latents, 64), nn.ReLU(),
            Block(64), Block(64), Block(64), nn.Upsample(scale_factor=2), conv(64, 64, 1, False),
            Block(64), Block(64), Block(64), nn.Upsample(scale_factor=2), conv(64, 48, 1, False),
            Block(48), Block(48), Block(48), nn.Upsample(scale_factor=2), conv(48, 32, 1, False),
            Block(32), conv(32, 3),
        )  # fmt: skip
        self.begin()


def train(folder: Path, drawer: Drawer, seed: int = 0) -> Training:
    """Train the autoencoder, or go on with the training found in the folder."""
    torch.manual_seed(seed)
    network = Taesd().to(device(), memory_format=torch.channels_last)
    return _trained(Training(network, folder / "autoencoder", CYCLES, PEAK, DECAY), drawer, seed)


def train_narrow(folder: Path, drawer: Drawer, seed: int = 0) -> Training:
    """The same with SD 1.x's four latent channels, beginning with the flow teacher's file."""
    torch.manual_seed(seed)
    network = Taesd(NARROW)
    shipped.fill_autoencoder(network)
    network.to(device(), memory_format=torch.channels_last)
    training = Training(network, folder / "eps-autoencoder", NARROW_CYCLES, PEAK, DECAY)
    return _trained(training, drawer, seed)


def _trained(training: Training, drawer: Drawer, seed: int) -> Training:
    network, place = training.module, device()
    backgrounds = captions.world().backgrounds

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"{seed}-autoencoder-{update}")
        scenes = [anywhere(captions.random_scene(source), source) for _ in range(BATCH)]
        images = drawer.draw(scenes, source, backgrounds).to(place)
        images = images.contiguous(memory_format=torch.channels_last)
        noise = torch.Generator("cpu").manual_seed((seed << 32) + update)
        with torch.autocast(place.type, torch.bfloat16):
            latents = network.encode(images).float()
            strength = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=noise) * 2
            off = strength * torch.randn(latents.shape, generator=noise)
            drawn = network.decode(latents + off.to(place)).float()
        return drawing_loss(drawn, images) + 0.02 * spread_loss(latents)

    training.run(loss_of)
    return training


def spread_loss(latents: Tensor) -> Tensor:
    """How far each channel's mean is from 0 and its deviation from 1 over the batch."""
    deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()


def drawing_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """L1 and MSE of pixels, L1 of their differences, L1 of the image at an eighth of its side."""
    error = drawn - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    coarse = functional.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges + coarse


def load(folder: Path, narrow: bool = False) -> Taesd:
    """The averaged autoencoder as far as it is trained, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    network = Taesd(NARROW) if narrow else Taesd()
    path = folder / ("eps-autoencoder" if narrow else "autoencoder") / "state.safetensors"
    network.load_state_dict(part(load_file(path), "average."))
    return network.to(device(), memory_format=torch.channels_last).eval()
