"""Stage `vae`: a small autoencoder whose weights fit into TAESD's layout with zeros around them.

TAESD is 64 channels wide at every level with one, three, three, three blocks. Two cores cannot
train that in minutes, and such pictures do not need it: here the levels are 32, 48, 64 and 64
wide, and some blocks are left out. A left-out block is one whose convolutions are all zero, that
is a bare ReLU; absent channels are zero rows and columns. Both are exact in TAESD's own network.

The modules stand at TAESD's own positions, so names need no translation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shapes_teacher_common import Training, device, part
from torch import Tensor, nn
from torch.nn import functional

LATENT_CHANNELS = 16
LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609
"""SD3: the denoiser sees (latent - shift) * scale, in diffusers and in ComfyUI alike."""
BATCH, UPDATES, PEAK, DECAY = 32, 1200, 2e-3, 0.995
LATENT_NOISE = 0.05


class Block(nn.Module):
    """ReLU(x + conv(conv(conv(x)))) as in TAESD."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU()]
        self.conv = nn.Sequential(*layers, _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """TAESD's soft bound on latents: 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


class SlimTaesd(nn.Module):
    """Encoder and decoder between pictures in [0, 1] and 16 x H/8 x W/8 latents."""

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = nn.Sequential(
            _conv(3, 32), nn.ReLU(),
            _conv(32, 48, 2, False), Block(48), nn.ReLU(), nn.ReLU(),
            _conv(48, 64, 2, False), Block(64), nn.ReLU(), nn.ReLU(),
            _conv(64, 64, 2, False), Block(64), Block(64), nn.ReLU(),
            _conv(64, LATENT_CHANNELS),
        )  # fmt: skip
        self.taesd_decoder = nn.Sequential(
            Clamp(), _conv(LATENT_CHANNELS, 64), nn.ReLU(),
            Block(64), Block(64), Block(64), nn.Upsample(scale_factor=2), _conv(64, 64, 1, False),
            Block(64), Block(64), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(64, 48, 1, False),
            Block(48), nn.ReLU(), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(48, 32, 1, False),
            nn.ReLU(), _conv(32, 3),
        )  # fmt: skip

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents in the denoiser's space, shape (N, 16, H/8, W/8), of pictures in [0, 1]."""
        return (self.taesd_encoder(pictures) - LATENT_SHIFT) * LATENT_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in about [0, 1], shape (N, 3, H, W), of latents in the denoiser's space."""
        return self.taesd_decoder(latents / LATENT_SCALE + LATENT_SHIFT)


def to_tensor(pictures: np.ndarray, place: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) as float (N, 3, H, W) in [0, 1], channels last in memory."""
    tensor = torch.from_numpy(pictures).to(place).permute(0, 3, 1, 2).float() / 255
    return tensor.contiguous(memory_format=torch.channels_last)


def to_pictures(decoded: Tensor) -> np.ndarray:
    """What a host shows for a decoded tensor: uint8, shape (N, H, W, 3)."""
    return (decoded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def train(folder: Path, seed: int, updates: int = UPDATES) -> Training:
    """Train the autoencoder, or go on with the training found in the folder."""
    from dpdmd_studio.trainer.engine import shapes

    torch.manual_seed(seed)
    place = device()
    network = SlimTaesd().to(place, memory_format=torch.channels_last)
    training = Training(network, folder / "vae", updates, PEAK, DECAY)

    def loss_of(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 1, update])
        scenes = shapes.random_scenes(BATCH, generator)
        pictures = to_tensor(shapes.draw(scenes, generator), place)
        return reconstruction_loss(network, pictures, seed + update)

    training.run(loss_of)
    return training


def reconstruction_loss(network: SlimTaesd, pictures: Tensor, seed: int) -> Tensor:
    """L1 + MSE of pixels, L1 of edges, and a pull of each latent channel to mean 0 and std 1."""
    latents = network.encode(pictures)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    error = network.decode(latents + LATENT_NOISE * noise) - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    bound = mean.square().mean() + (deviation - 1).square().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges + 0.02 * bound


def load(folder: Path) -> SlimTaesd:
    """The averaged autoencoder of a finished stage, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    network = SlimTaesd()
    network.load_state_dict(part(load_file(folder / "vae" / "state.safetensors"), "average."))
    return network.to(device(), memory_format=torch.channels_last).eval()


def padded(network: SlimTaesd) -> dict[str, Tensor]:
    """The weights in TAESD's full layout under its own names, zeros around what was trained."""
    from diffusers import AutoencoderTiny

    full = AutoencoderTiny(latent_channels=LATENT_CHANNELS).state_dict()
    trained = network.state_dict()
    result: dict[str, Tensor] = {}
    for name, whole in full.items():
        side, _, index, rest = name.split(".", 3)
        position = int(index) + (side == "decoder")  # diffusers keeps the clamp elsewhere
        name = f"taesd_{side}.{position}.{rest}"
        result[name] = torch.zeros_like(whole)
        if name in trained:
            corner = tuple(slice(n) for n in trained[name].shape)
            result[name][corner] = trained[name].cpu()
    missing = set(trained) - set(result)
    assert not missing, f"names that TAESD does not have: {sorted(missing)}"
    return result
