"""Stages `flow-coarse` and `flow`: a small MMDiT in SD3's layout and its text model.

Trained together, first with 16 tokens a picture, each of 2 x 2 latents, which is cheap and learns
what things are; then with 64, one for each latent, which draws them finely.

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

DEPTH, SIDE = 4, 8
PEAK, DECAY = 1.5e-3, 0.9995
BATCH, CYCLES, COARSE_CYCLES = 128, (2500,), (4400, 3900)
LEVEL_MEAN, LEVEL_DEVIATION = 0.4, 1.1
"""Of the normal distribution whose sigmoid is sigma."""


class EmojiTeacher(FlowTeacher):
    """The denoiser and its text model, with narrow text features."""

    def __init__(self, patch: int = 1) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel

        self.rows = text.Rows()
        self.transformer = SD3Transformer2DModel(
            sample_size=SIDE * patch // 2, patch_size=patch, in_channels=16, out_channels=16,
            num_layers=DEPTH,
            attention_head_dim=64, num_attention_heads=DEPTH, joint_attention_dim=text.WIDTH,
            caption_projection_dim=64 * DEPTH, pooled_projection_dim=text.WIDTH,
            pos_embed_max_size=2 * SIDE // patch, qk_norm="rms_norm",
        )  # fmt: skip
        start_as_identity(self.transformer)
        self.text = text.model(3 + len(self.rows.ids))

    def said(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `FlowTeacher.said`."""
        place = next(self.parameters()).device
        return text.encode(self.text, self.rows(texts).to(place))


def train(folder: Path, bank: Bank, ranks: Ranks, coarse: bool = False, seed: int = 0) -> Training:
    """Train the denoiser, or go on with the training found in the folder."""
    torch.manual_seed(seed)
    place = device()
    teacher = (EmojiTeacher(2) if coarse else finer(load(folder, coarse=True))).to(place)
    teacher.train().compile_parts()
    cycles = COARSE_CYCLES if coarse else CYCLES
    training = Training(teacher, folder / stage(coarse), cycles, PEAK, DECAY)
    training.ranks = ranks

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"flow-{ranks.data(seed, update)}")
        batch = bank.batch(BATCH // ranks.size, source)
        normal = 2**0.5 * torch.erfinv(2 * batch.even.clamp(1e-4, 1 - 1e-4) - 1)
        sigma = torch.sigmoid(LEVEL_MEAN + LEVEL_DEVIATION * normal)
        level = sigma[:, None, None, None]
        x_t = (1 - level) * batch.x0 + level * batch.eps
        with torch.autocast(place.type, torch.bfloat16):
            velocity = teacher.velocity(x_t, sigma, teacher.said(batch.said)).float()
        return (velocity - (batch.eps - batch.x0)).square().mean()

    training.run(loss_of)
    return training


def finer(coarse: EmojiTeacher) -> EmojiTeacher:
    """A teacher of 64 tokens that starts with what the one of 16 has learnt.

    A token's place in the picture stays what it was, for the table of places is twice as fine.
    """
    teacher, state = EmojiTeacher(), coarse.state_dict()
    kept = teacher.state_dict()["transformer.pos_embed.pos_embed"]
    width = 64 * DEPTH
    state["transformer.pos_embed.pos_embed"] = kept
    into = state["transformer.pos_embed.proj.weight"]
    state["transformer.pos_embed.proj.weight"] = into.mean((2, 3), keepdim=True) * 2
    out = state["transformer.proj_out.weight"]
    state["transformer.proj_out.weight"] = out.view(4, 16, width).mean(0)
    state["transformer.proj_out.bias"] = state["transformer.proj_out.bias"].view(4, 16).mean(0)
    teacher.load_state_dict(state)
    return teacher


def stage(coarse: bool) -> str:
    """The folder of a stage."""
    return "flow-coarse" if coarse else "flow"


def load(folder: Path, coarse: bool = False) -> EmojiTeacher:
    """The averaged teacher as far as it is trained, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    teacher = EmojiTeacher(2 if coarse else 1)
    state = load_file(folder / stage(coarse) / "state.safetensors")
    teacher.load_state_dict(part(state, "average."))
    return teacher.to(device()).eval()
