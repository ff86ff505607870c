"""Stage `eps`: a small UNet in SD 1.x's layout that predicts noise, on the same pictures.

96 x 96 pixels, so 12 x 12 latents of 4 channels. Its text model begins with the flow teacher's, as
do the layers of its autoencoder.

What an open caption becomes is decided at high noise (see `flow`), where an error of x0 hardly
shows in the noise: so high timesteps are drawn more often, and errors count as errors of v would.
"""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from shapes_teacher_common import Ranks, Training, attend, device, part
from shapes_teacher_unet import scales
from torch import Tensor, nn

from . import shipped, text
from .bank import Bank, Mix

RESOLUTION = 96
UNET = {
    "sample_size": 12, "in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128, 128),
    "layers_per_block": 1, "attention_head_dim": 8, "cross_attention_dim": text.WIDTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
}  # fmt: skip
BATCH, PEAK, DECAY, LEVELS = 128, 1.5e-3, 0.998, 1000


@dataclass(frozen=True)
class Round:
    """So many updates, and until which of all updates captions say what."""

    updates: int
    mixes: tuple[tuple[int, Mix], ...]


ROUNDS = (
    Round(8000, ((5000, Mix(open=0.6)), (8000, Mix(open=0.45, wrong=0.4)))),
    Round(1200, ((9200, Mix(open=0.15, wrong=0.4)),)),
)
"""Captions as in the flow teacher's rounds, then more names. Each round is a cycle of the learning
rate. The teacher is the mean of both rounds' averaged weights, which draws better than either."""


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


def train(folder: Path, bank: Bank, ranks: Ranks, seed: int = 0) -> None:
    """Train every round, or go on with the round found in the folder."""
    for number in range(1, 1 + len(ROUNDS)):
        if (folder / f"eps-{number + 1}").exists():
            continue
        if number > 1 and not (folder / f"eps-{number}").exists():
            shutil.copytree(folder / f"eps-{number - 1}", folder / f"eps-{number}")
        torch.manual_seed(seed)
        teacher, cycles = EpsTeacher(), [each.updates for each in ROUNDS[:number]]
        shipped.fill_text(teacher.text)
        training = Training(teacher.to(device()), folder / f"eps-{number}", cycles, PEAK, DECAY)
        training.ranks = ranks
        with patch.object(nn.functional, "scaled_dot_product_attention", attend):
            training.run(_loss(teacher, bank, seed, ranks))


def _loss(teacher: EpsTeacher, bank: Bank, seed: int, ranks: Ranks):
    mixes = [mix for each in ROUNDS for mix in each.mixes]

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"eps-{ranks.data(seed, update)}")
        mix = next(mix for end, mix in mixes if update < end)
        batch = bank.batch(BATCH // ranks.size, source, mix)
        timesteps = (batch.even.sqrt() * LEVELS).long().clamp(max=LEVELS - 1)
        alpha, std = scales(timesteps)
        x_t = alpha * batch.x0 + std * batch.eps
        with torch.autocast(device().type, torch.bfloat16):
            found = teacher.eps(x_t, timesteps, teacher.said(batch.said)).float()
        return ((found - batch.eps).square() * (1 + (std / alpha).square())).mean()

    return loss_of


def load(folder: Path) -> EpsTeacher:
    """The teacher of the rounds that are trained, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    files = [folder / f"eps-{n}" / "state.safetensors" for n in range(1, 1 + len(ROUNDS))]
    averages = [part(load_file(file), "average.") for file in files if file.exists()]
    teacher = EpsTeacher()
    mean = {
        name: sum(each[name].float() for each in averages) / len(averages)
        for name in teacher.state_dict()
    }
    teacher.load_state_dict(mean)
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
