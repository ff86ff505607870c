"""Stage `vae`: a small autoencoder with a latent space of our own making, in TAESD's layout.

TAESD is 64 channels wide at every level with one, three, three, three blocks. Two cores cannot
train that in minutes, and such images do not need it: here the levels are 32, 48, 64 and 64
wide, and some blocks are left out. A left-out block is one whose convolutions are all zero, that
is a bare ReLU; absent channels are zero rows and columns. Both are exact in TAESD's own network.

What the latents mean is not left to chance. `code` writes down, in each of the 8x8 cells, the two
colours, the shape, its size and side, and how far the cell is from the shape's middle. The encoder
learns to read this code off an image and the decoder to draw it. A denoiser learns such smooth,
redundant latents in minutes, where it needs hours for those of a freely trained autoencoder.
Classes lie far apart in the code, each about as far from each (`CORNERS`): where neighbours lie
close, as red and orange do in RGB, a small denoiser makes images that are between the two.

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
BATCH, CYCLES, PEAK, DECAY = 64, (700, 800, 1000, 1700, 1200), 2e-3, 0.995
CROP, WHOLE_BATCH = 32, 16
WINDOWS = (True, False, False, True, False)
"""Cycles in which the decoder sees windows around outlines instead of whole images.

Never the last one: after windows alone, blobs appear on the planes that they did not show.
"""
READS = (True, True, True, True, False)
"""Cycles in which the encoder learns, too."""
LATENT_NOISE = (0.2, 0.1, 0.1, 0.05, 0.03)
"""The decoder learns to draw cleanly from latents that are off by this much, in each cycle."""
CELL = 8
OFFSET, OFFSET_CHANNELS = (0.4, 0.4, 0.4, 0.25, 0.3), [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 15]
"""As LATENT_NOISE, but alike in all cells of an image, on the channels that tell classes."""
TRIANGLE = 2**0.5 * np.array([[-(0.75**0.5), -0.5], [0, 1], [0.75**0.5, -0.5]])
CORNERS = {
    "six": np.array([[*corner, height] for height in (-1.2, 1.2) for corner in TRIANGLE]),
    "shape": np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
    "size": TRIANGLE,
    "position": np.array(
        [[-1.58, 0, -0.5], [1.58, 0, -0.5], [0, -1.58, -0.5], [0, 1.58, -0.5], [0, 0, 2]]
    ),
}
"""Where the classes lie: prism, tetrahedron, triangle, pyramid, of about variance 1 on every axis.

An octahedron would be rounder than the prism, and cannot be learnt in the time: up to its fourth
moments it looks like a Gaussian along each axis.
"""


def code(scenes, plans, cell: int = CELL) -> np.ndarray:
    """The latents that stand for the images, fp32, of about unit variance.

    Their shape is (N, 16, 64 / cell, 64 / cell), for cells of `cell` pixels.

    Channels 0-2: class of background; 3-5: class of colour, each moved a little by the tone; 6-8:
    shape; 9 and 14: size, moved so that the half extent is linear in both; 10-11: distance of the
    cell's middle from the shape's middle, to the right and down; 12, 13, 15: side of the image.
    """
    import shapes_scenes
    from dpdmd_studio.trainer.toys import shapes

    def corners(attribute: str, name: str) -> np.ndarray:
        classes = shapes.ATTRIBUTES[attribute]
        return CORNERS[name][[classes.index(getattr(scene, attribute)) for scene in scenes]]

    def tone(found: np.ndarray, palette, attribute: str) -> np.ndarray:
        return (found - [palette[getattr(scene, attribute)] for scene in scenes]) / 65.0

    cells = (np.arange(shapes.RESOLUTION // cell) + 0.5) * cell
    middles = np.array([np.mean(limits) for limits in shapes_scenes.HALF_EXTENTS.values()])
    linear = np.linalg.solve(np.column_stack([CORNERS["size"], np.ones(3)]), middles)[:2]
    extra = plans.half - [np.mean(shapes_scenes.HALF_EXTENTS[scene.size]) for scene in scenes]
    size = corners("size", "size") + extra[:, None] * linear / (linear @ linear)
    side = corners("position", "position")
    flat = np.concatenate(
        [
            corners("background", "six") + tone(plans.behind, shapes.BACKGROUNDS, "background"),
            corners("colour", "six") + tone(plans.front, shapes.COLOURS, "colour"),
            corners("shape", "shape"),
            np.column_stack([size[:, 0], extra, extra, side[:, :2], size[:, 1], side[:, 2]]),
        ],
        axis=1,
    )
    latents = np.empty((len(scenes), LATENT_CHANNELS, len(cells), len(cells)), np.float32)
    latents[:] = flat[:, :, None, None]
    latents[:, 10] = (cells[None, None, :] - plans.x[:, None, None]) / 15.0
    latents[:, 11] = (cells[None, :, None] - plans.y[:, None, None]) / 15.0
    return latents


class Block(nn.Module):
    """ReLU(x + conv(conv(conv(x)))) as in TAESD."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU()]
        self.conv = nn.Sequential(*layers, conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """TAESD's soft bound on latents: 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


class Codec(nn.Module):
    """An encoder and a decoder in TAESD's structure, between images in [0, 1] and latents."""

    taesd_encoder: nn.Module
    taesd_decoder: nn.Module

    def begin(self) -> None:
        """Draw the weights; every block begins near the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                module.conv[-1].weight.data.mul_(0.1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents in the denoiser's space, shape (N, 16, H/8, W/8), of images in [0, 1]."""
        return (self.taesd_encoder(images) - LATENT_SHIFT) * LATENT_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Images in about [0, 1], shape (N, 3, H, W), of latents in the denoiser's space."""
        return self.taesd_decoder(latents / LATENT_SCALE + LATENT_SHIFT)


class SlimTaesd(Codec):
    """Encoder and decoder between images in [0, 1] and 16 x H/8 x W/8 latents."""

    def __init__(self, latents: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.taesd_encoder = nn.Sequential(
            conv(3, 32), nn.ReLU(),
            conv(32, 48, 2, False), Block(48), nn.ReLU(), nn.ReLU(),
            conv(48, 64, 2, False), Block(64), nn.ReLU(), nn.ReLU(),
            conv(64, 64, 2, False), Block(64), Block(64), Block(64),
            conv(64, latents),
        )  # fmt: skip
        self.taesd_decoder = nn.Sequential(
            Clamp(), conv(latents, 64), nn.ReLU(),
            Block(64), Block(64), Block(64), nn.Upsample(scale_factor=2), conv(64, 64, 1, False),
            Block(64), Block(64), nn.ReLU(), nn.Upsample(scale_factor=2), conv(64, 48, 1, False),
            Block(48), nn.ReLU(), nn.ReLU(), nn.Upsample(scale_factor=2), conv(48, 32, 1, False),
            Block(32), conv(32, 3),
        )  # fmt: skip
        self.begin()


def to_tensor(images: np.ndarray, place: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) as float (N, 3, H, W) in [0, 1], channels last in memory."""
    tensor = torch.from_numpy(images).to(place).permute(0, 3, 1, 2).float() / 255
    return tensor.contiguous(memory_format=torch.channels_last)


def to_images(decoded: Tensor) -> np.ndarray:
    """What a host shows for a decoded tensor: uint8, shape (N, H, W, 3)."""
    return (decoded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def train(folder: Path, seed: int, compiled: bool = False) -> Training:
    """Train the autoencoder, or go on with the training found in the folder.

    In some cycles the decoder sees windows around outlines, in the others whole images.
    """
    import shapes_scenes

    torch.manual_seed(seed)
    place = device()
    network = SlimTaesd().to(place, memory_format=torch.channels_last)
    training = Training(network, folder / "vae", CYCLES, PEAK, DECAY)
    if compiled:
        network.taesd_encoder.compile()
        network.taesd_decoder.compile()

    def loss_of(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 1, update])
        cycle = int(np.searchsorted(np.cumsum(CYCLES), update, side="right"))
        scenes = shapes_scenes.random_scenes(BATCH, generator)
        plans = shapes_scenes.plan(scenes, generator)
        drawn = shapes_scenes.render(plans)
        wanted = torch.from_numpy(code(scenes, plans)).to(place)
        images = to_tensor(drawn, place)
        reading = torch.zeros((), device=place)
        if READS[cycle]:
            latents = network.encode(images[:WHOLE_BATCH])
            reading = (latents - wanted[:WHOLE_BATCH]).square().mean()
        if WINDOWS[cycle]:
            images, wanted = windows(drawn, images, wanted, generator)
        else:
            images, wanted = images[:WHOLE_BATCH], wanted[:WHOLE_BATCH]
        noise = torch.Generator("cpu").manual_seed((seed << 32) + update)
        strength = LATENT_NOISE[cycle] * torch.rand(len(wanted), 1, 1, 1, generator=noise)
        wanted = wanted + (strength * torch.randn(wanted.shape, generator=noise)).to(place)
        share = OFFSET[cycle] * torch.rand(len(wanted), 1, 1, 1, generator=noise)
        offset = torch.randn(len(wanted), len(OFFSET_CHANNELS), 1, 1, generator=noise)
        wanted[:, OFFSET_CHANNELS] += (share * offset).to(place)
        return 0.3 * reading + drawing_loss(network.decode(wanted), images)

    training.run(loss_of)
    return training


def windows(
    drawn: np.ndarray, images: Tensor, latents: Tensor, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A window of each image around a random point of its shape's outline, and its cells.

    Plain background teaches nothing and costs as much as an outline. Windows lie on whole cells.
    """
    size, whole = CROP, drawn.shape[1]
    some, cells = [], []
    for index, image in enumerate(drawn):
        change = np.abs(np.diff(image.astype(np.int16), axis=1)).sum(axis=-1)
        y, x = divmod(int(generator.choice(np.flatnonzero(change > 20))), whole - 1)
        corner = np.array([y, x]) - generator.integers(4, size - 4, size=2)
        top, left = np.clip((corner + CELL // 2) // CELL * CELL, 0, whole - size)
        some.append(images[index, :, top : top + size, left : left + size])
        row, column, count = top // CELL, left // CELL, size // CELL
        cells.append(latents[index, :, row : row + count, column : column + count])
    return torch.stack(some).contiguous(memory_format=torch.channels_last), torch.stack(cells)


def drawing_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE of pixels, those near outlines counted fourfold, and L1 of edges."""
    error = drawn - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    lightest = functional.max_pool2d(images, 3, 1, 1)
    darkest = -functional.max_pool2d(-images, 3, 1, 1)
    outline = ((lightest - darkest).amax(dim=1, keepdim=True) > 0.08).float()
    weight = 1 + 3 * functional.max_pool2d(outline, 5, 1, 2)
    weight = weight / weight.mean()
    return (weight * (error.abs() + 2 * error.square())).mean() + edges


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
