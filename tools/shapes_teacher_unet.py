"""Stages of the SD 1.x teacher: a small eps-predicting UNet, its text model and its decoder.

SD 1.x latents have 4 channels, the code of `shapes_teacher_vae.code` has 16. So the code is taken
on 4x4 cells of 16x16 pixels, and each cell's 16 numbers lie in the 2x2 latent pixels that stand for
it (`interleaved`). One of the 16 is a constant, by which a convolution, blind to where it stands,
can tell which of the four it looks at; the shape makes do with two numbers instead of three.

The decoder is the SD3 teacher's, which draws the same images from the same numbers, with new
first layers that sort these. The file holds no encoder: nothing needs one, and the 8 MB that it may
have are better spent.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import shapes_teacher_denoiser as sd3
import shapes_teacher_vae as vae
import torch
from shapes_teacher_common import Training, device, part
from torch import Tensor, nn
from torch.nn import functional

LATENT_CHANNELS, CELLS = 4, 4
SQUARE = 1.25 * np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
MARKER = 2.5
SLOTS = (0, 1, 2, 6, 3, 4, 5, 7, 10, 11, 12, 13, 9, 14, 15, 8)
"""Which channel of the 16 lies in each of the 4 x (2x2) places; the last one is the marker's."""
NOISY = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14)
"""Places that tell classes, where the decoder is shown offsets alike in the whole image."""
UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 96),
    "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
    "cross_attention_dim": sd3.TEXT_WIDTH, "norm_num_groups": 32,
}  # fmt: skip
BATCH, CYCLES, PEAK, DECAY = 128, (4500,), 2e-3, 0.995
DECODER_BATCH, DECODER_CYCLES, DECODER_PEAK = 64, (3000,), 2e-3
FRONT = 6
"""Layers of the decoder before its first enlargement."""
LATENT_NOISE, OFFSET = 0.1, 0.3
LEVELS = 1000


def code(scenes, plans) -> np.ndarray:
    """The latents that stand for the images, fp32, shape (N, 4, 8, 8)."""
    from dpdmd_studio.trainer.toys import shapes

    cells = vae.code(scenes, plans, cell=shapes.RESOLUTION // CELLS)
    square = SQUARE[[shapes.SHAPES.index(scene.shape) for scene in scenes]]
    cells[:, 6:8] = square[:, :, None, None]
    cells[:, 8] = MARKER
    return interleaved(cells[:, SLOTS])


def interleaved(cells: np.ndarray) -> np.ndarray:
    """(N, 16, 4, 4) as (N, 4, 8, 8): channel 4 c + 2 p + q goes to row 2 i + p, column 2 j + q."""
    return functional.pixel_shuffle(torch.from_numpy(np.ascontiguousarray(cells)), 2).numpy()


class Teacher(nn.Module):
    """The denoiser and its text model."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.unet = UNet2DConditionModel(**UNET)
        nn.init.zeros_(self.unet.conv_out.weight)
        self.text = sd3.text_model()

    def compile_parts(self) -> None:
        """Let torch's compiler fuse the networks; the same function, faster."""
        self.unet.compile()
        self.text.compile()

    def encode(self, rows: Tensor) -> Tensor:
        """Context after the final norm, shape (N, L, D)."""
        return self.text(input_ids=rows).last_hidden_state

    def eps(self, x_t: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The predicted noise, shape of x_t; timestep has shape (N,)."""
        return self.unet(x_t, timestep, context, return_dict=False)[0]


def scales(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, std) of SD's schedule at whole timesteps; shape (N, 1, 1, 1) each."""
    from dpdmd_studio.core.diffusion.schedule import VPSchedule

    schedule = VPSchedule()
    alpha, std = schedule.scales(schedule.sigma_at(timesteps))
    return alpha[:, None, None, None], std[:, None, None, None]


def train(folder: Path, seed: int, compiled: bool = False) -> Training:
    """Train the denoiser, or go on with the training found in the folder."""
    import shapes_scenes

    torch.manual_seed(seed)
    place = device()
    teacher = Teacher().to(place)
    training = Training(teacher, folder / "unet", CYCLES, PEAK, DECAY)
    if compiled:
        teacher.compile_parts()

    def loss_of(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 4, update])
        scenes = shapes_scenes.random_scenes(BATCH, generator)
        x0 = torch.from_numpy(code(scenes, shapes_scenes.plan(scenes, generator))).to(place)
        texts = [sd3.training_caption(scene, generator) for scene in scenes]
        noise = torch.Generator("cpu").manual_seed((seed << 32) + update)
        eps = torch.randn(x0.shape, generator=noise).to(place)
        share = (
            torch.randperm(BATCH, generator=noise) + torch.rand(BATCH, generator=noise)
        ) / BATCH
        timesteps = (share * LEVELS).long().clamp(max=LEVELS - 1).to(place)
        alpha, std = scales(timesteps)
        context = teacher.encode(sd3.token_rows(texts).to(place))
        predicted = teacher.eps(alpha * x0 + std * eps, timesteps, context)
        return (predicted - eps).square().mean()

    training.run(loss_of)
    return training


def sd3_decoder(asset: Path) -> vae.SlimTaesd:
    """The SD3 teacher's decoder out of its file; its encoder is left as it was drawn."""
    from safetensors.torch import load_file

    network, stored = vae.SlimTaesd(), part(load_file(asset), "first_stage_model.")
    slots = network.state_dict()
    decoder = {
        name: stored[name][tuple(slice(n) for n in slot.shape)].float()
        for name, slot in slots.items()
        if name.startswith("taesd_decoder.")
    }
    network.load_state_dict(slots | decoder)
    return network.to(device()).eval()


def train_decoder(folder: Path, seed: int, asset: Path, compiled: bool = False) -> Training:
    """Train the decoder's first layers, or go on with the training found in the folder.

    They learn to say of these latents what the SD3 teacher's first layers say of its own latents of
    the same image; the layers behind them, which draw, are taken over as they are.
    """
    import shapes_scenes

    torch.manual_seed(seed)
    place = device()
    front = decoder_front().to(place)
    training = Training(front, folder / "decoder", DECODER_CYCLES, DECODER_PEAK, DECAY)
    wanted_of = sd3_decoder(asset).taesd_decoder[:FRONT]
    if compiled:
        front.compile()

    def loss_of(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 5, update])
        scenes = shapes_scenes.random_scenes(DECODER_BATCH, generator)
        plans = shapes_scenes.plan(scenes, generator)
        noise = torch.Generator("cpu").manual_seed((seed << 32) + update)
        latents = off(torch.from_numpy(code(scenes, plans)), noise).to(place)
        with torch.no_grad():
            theirs = torch.from_numpy(vae.code(scenes, plans)).to(place)
            wanted = wanted_of(theirs / vae.LATENT_SCALE + vae.LATENT_SHIFT)
        return (front(latents) - wanted).square().mean() / wanted.var()

    training.run(loss_of)
    return training


def decoder_front() -> nn.Sequential:
    """A new decoder's layers before the first enlargement."""
    return vae.SlimTaesd(LATENT_CHANNELS).taesd_decoder[:FRONT]


def off(latents: Tensor, noise: torch.Generator) -> Tensor:
    """Latents with noise, and with offsets that are alike in all cells of an image."""
    count = len(latents)
    own = LATENT_NOISE * torch.rand(count, 1, 1, 1, generator=noise)
    latents = latents + own * torch.randn(latents.shape, generator=noise)
    shift = torch.zeros(count, 16, 1, 1)
    shift[:, NOISY] = torch.randn(count, len(NOISY), 1, 1, generator=noise)
    shift *= OFFSET * torch.rand(count, 1, 1, 1, generator=noise)
    return latents + functional.pixel_shuffle(shift.expand(-1, -1, CELLS, CELLS), 2)


def load(folder: Path) -> Teacher:
    """The averaged teacher of a finished stage, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    teacher = Teacher()
    teacher.load_state_dict(part(load_file(folder / "unet" / "state.safetensors"), "average."))
    return teacher.to(device()).eval()


def load_decoder(folder: Path, asset: Path) -> vae.SlimTaesd:
    """A decoder of the averaged first layers of a finished stage and the SD3 teacher's others."""
    from safetensors.torch import load_file

    front = decoder_front()
    front.load_state_dict(part(load_file(folder / "decoder" / "state.safetensors"), "average."))
    network = vae.SlimTaesd(LATENT_CHANNELS)
    del network.taesd_encoder
    network.taesd_decoder = nn.Sequential(*front, *sd3_decoder(asset).taesd_decoder[FRONT:].cpu())
    return network.eval()


@torch.inference_mode()
def sample(teacher: Teacher, texts: list[str], noise: Tensor, steps: int, scale: float) -> Tensor:
    """Latents of guided DDIM steps on the trailing grid, from noise (N, 4, 8, 8)."""
    from dpdmd_studio.core.diffusion.schedule import trailing_positions

    context = teacher.encode(sd3.token_rows(texts).to(noise.device))
    if scale != 1.0:
        empty = teacher.encode(sd3.token_rows([""] * len(texts)).to(noise.device))
        context = torch.cat([context, empty])
    positions = trailing_positions(steps)
    x_t = noise
    for now, after in itertools.pairwise(positions):
        twice = x_t if scale == 1.0 else torch.cat([x_t, x_t])
        eps = teacher.eps(twice, now.expand(len(twice)).to(noise.device), context)
        if scale != 1.0:
            conditional, unconditional = eps.chunk(2)
            eps = unconditional + scale * (conditional - unconditional)
        (alpha, std), (alpha_after, std_after) = scales(now[None]), scales(after[None])
        x_t = alpha_after * (x_t - std * eps) / alpha + std_after * eps
    return x_t
