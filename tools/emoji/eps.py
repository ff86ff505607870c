"""Stage `eps`: a small UNet in SD 1.x's layout that predicts noise, on the same pictures.

96 x 96 pixels, so 12 x 12 latents of 4 channels. Its text model begins with the flow teacher's.

What an open caption becomes is decided at high noise (see `flow`), where an error of x0 hardly
shows in the noise: so high timesteps are drawn more often, and errors count as errors of v would.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import torch
from shapes_teacher_common import Ranks, Training, device, part
from shapes_teacher_unet import scales
from torch import Tensor, nn

from . import flow, text
from .bank import Bank, Mix

RESOLUTION = 96
UNET = {
    "sample_size": 12, "in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128, 192),
    "layers_per_block": 1, "attention_head_dim": 4, "cross_attention_dim": text.WIDTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
}  # fmt: skip
BATCH, CYCLES, PEAK, DECAY = 128, (5000, 13000), 1.5e-3, 0.9995
LEVELS, MIX = 1000, Mix(open=0.3, wrong=0.4)


class EpsTeacher(nn.Module):
    """The denoiser and its text model."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.rows = text.Rows()
        self.unet = UNet2DConditionModel(**UNET)
        nn.init.zeros_(self.unet.conv_out.weight)
        self.text = text.model(3 + len(self.rows.ids))

    def said(self, texts: list[str]) -> Tensor:
        """Context of captions, shape (N, L, D)."""
        return text.encode(self.text, self.rows(texts).to(next(self.parameters()).device))[0]

    def eps(self, x_t: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The predicted noise, shape of x_t; timestep has shape (N,)."""
        return self.unet(x_t, timestep, context, return_dict=False)[0]


def train(folder: Path, bank: Bank, ranks: Ranks, seed: int = 0) -> Training:
    """Train the denoiser, or go on with the training found in the folder."""
    torch.manual_seed(seed)
    place, teacher = device(), EpsTeacher()
    teacher.text.load_state_dict(flow.load(folder).text.state_dict())
    training = Training(teacher.to(place), folder / "eps", CYCLES, PEAK, DECAY)
    training.ranks = ranks
    teacher.unet.compile()
    teacher.text.compile()

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"eps-{ranks.data(seed, update)}")
        batch = bank.batch(BATCH // ranks.size, source, MIX)
        timesteps = (batch.even.sqrt() * LEVELS).long().clamp(max=LEVELS - 1)
        alpha, std = scales(timesteps)
        x_t = alpha * batch.x0 + std * batch.eps
        with torch.autocast(place.type, torch.bfloat16):
            found = teacher.eps(x_t, timesteps, teacher.said(batch.said)).float()
        return ((found - batch.eps).square() * (1 + (std / alpha).square())).mean()

    training.run(loss_of)
    return training


def load(folder: Path) -> EpsTeacher:
    """The averaged teacher as far as it is trained, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    teacher = EpsTeacher()
    teacher.load_state_dict(part(load_file(folder / "eps" / "state.safetensors"), "average."))
    return teacher.to(device()).eval()


@torch.inference_mode()
def sample(
    teacher: EpsTeacher, texts: list[str], noise: Tensor, steps: int, scale: float
) -> Tensor:
    """Latents of guided DDIM steps on the trailing grid, from noise (N, 4, 12, 12)."""
    from dpdmd_studio.core.diffusion.schedule import trailing_positions

    context = teacher.said(texts)
    if scale != 1.0:
        context = torch.cat([context, teacher.said([""] * len(texts))])
    x_t = noise
    for now, after in itertools.pairwise(trailing_positions(steps)):
        twice = x_t if scale == 1.0 else torch.cat([x_t, x_t])
        eps = teacher.eps(twice, now.expand(len(twice)).to(noise), context)
        if scale != 1.0:
            conditional, unconditional = eps.chunk(2)
            eps = unconditional + scale * (conditional - unconditional)
        (alpha, std), (alpha_after, std_after) = scales(now[None]), scales(after[None])
        x_t = alpha_after * (x_t - std * eps) / alpha + std_after * eps
    return x_t
