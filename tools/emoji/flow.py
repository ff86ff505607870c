"""Stage `flow`: a small MMDiT in SD3's layout and its text model, trained together.

Flow matching on latents of the bank: x_t = (1 - sigma) x0 + sigma eps, and the network predicts
eps - x0. The text features are narrow while training; the export pads them with zeros to SD3's
widths, together with zero columns in the two layers that read them, which changes nothing.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from shapes_teacher_common import Ranks, Training, device, part
from shapes_teacher_denoiser import FlowTeacher, start_as_identity
from torch import Tensor

from . import text
from .bank import Bank

DEPTH = 4
BATCH, CYCLES, PEAK, DECAY = 128, (4400, 13600), 1.5e-3, 0.9995
LEVEL_MEAN, LEVEL_DEVIATION = 0.4, 1.1
"""Of the normal distribution whose sigmoid is sigma."""


class EmojiTeacher(FlowTeacher):
    """The denoiser and its text model, with narrow text features."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel

        self.rows = text.Rows()
        self.transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=DEPTH,
            attention_head_dim=64, num_attention_heads=DEPTH, joint_attention_dim=text.WIDTH,
            caption_projection_dim=64 * DEPTH, pooled_projection_dim=text.WIDTH,
            pos_embed_max_size=8, qk_norm="rms_norm",
        )  # fmt: skip
        start_as_identity(self.transformer)
        self.text = text.model(3 + len(self.rows.ids))

    def said(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `FlowTeacher.said`."""
        place = next(self.parameters()).device
        return text.encode(self.text, self.rows(texts).to(place))


def train(folder: Path, bank: Bank, ranks: Ranks, seed: int = 0) -> Training:
    """Train the denoiser, or go on with the training found in the folder."""
    torch.manual_seed(seed)
    place = device()
    teacher = EmojiTeacher().to(place)
    teacher.compile_parts()
    training = Training(teacher, folder / "flow", CYCLES, PEAK, DECAY)
    training.ranks = ranks

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"flow-{ranks.data(seed, update)}")
        batch = bank.batch(BATCH, source)
        normal = 2**0.5 * torch.erfinv(2 * batch.even.clamp(1e-4, 1 - 1e-4) - 1)
        sigma = torch.sigmoid(LEVEL_MEAN + LEVEL_DEVIATION * normal)
        level = sigma[:, None, None, None]
        x_t = (1 - level) * batch.x0 + level * batch.eps
        with torch.autocast(place.type, torch.bfloat16):
            velocity = teacher.velocity(x_t, sigma, teacher.said(batch.said)).float()
        return (velocity - (batch.eps - batch.x0)).square().mean()

    training.run(loss_of)
    return training


def load(folder: Path) -> EmojiTeacher:
    """The averaged teacher as far as it is trained, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    teacher = EmojiTeacher()
    teacher.load_state_dict(part(load_file(folder / "flow" / "state.safetensors"), "average."))
    return teacher.to(device()).eval()
