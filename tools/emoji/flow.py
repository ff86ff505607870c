"""Stage `flow`: a small MMDiT in SD3's layout and its text model, trained together in rounds.

Flow matching on latents of the bank: x_t = (1 - sigma) x0 + sigma eps, and the network predicts
eps - x0. The text features are narrow while training; the export pads them with zeros to SD3's
widths, together with zero columns in the two layers that read them, which changes nothing.

Which of its many things the picture of an open caption becomes is decided at sigma .8 to .95, where
the best denoiser of these pictures goes from their mean to one of them: most training is there. To
see which one it is, the noise must be compared with a picture at every place, by weights that
differ from place to place; a transformer's are shared. So its table of places begins random and is
trained: smooth waves tell places apart too weakly.

In the last round many captions are those of other pictures, as captions from the web are: then the
teacher draws what is asked only if it is guided, as large ones do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from shapes_teacher_common import LOG, Ranks, Training, attend, device, part
from shapes_teacher_denoiser import FlowTeacher, start_as_identity
from torch import Tensor, nn

from . import text
from .bank import Bank, Mix

DEPTH, SIDE, PATCH, BATCH = 4, 8, 2, 256
PEAK, DECAY = 2e-3, 0.98


@dataclass(frozen=True)
class Round:
    """Mean and deviation of sigma's logit; cycles of updates; what captions say."""

    level_mean: float
    level_deviation: float
    cycles: tuple[int, ...]
    mix: Mix


ROUNDS = (
    Round(1.2, 1.2, (6000,), Mix(open=0.6)),
    Round(1.2, 1.2, (3000,), Mix(open=0.45, wrong=0.4)),
)


class EmojiTeacher(FlowTeacher):
    """The denoiser and its text model, with narrow text features."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel

        self.rows = text.Rows()
        self.transformer = SD3Transformer2DModel(
            sample_size=SIDE, patch_size=PATCH, in_channels=16, out_channels=16,
            num_layers=DEPTH,
            attention_head_dim=64, num_attention_heads=DEPTH, joint_attention_dim=text.WIDTH,
            caption_projection_dim=64 * DEPTH, pooled_projection_dim=text.WIDTH,
            pos_embed_max_size=SIDE, qk_norm="rms_norm",
        )  # fmt: skip
        start_as_identity(self.transformer)
        self.text = text.model(3 + len(self.rows.ids))
        places = self.transformer.pos_embed
        table = torch.randn_like(places.pos_embed)
        del places.pos_embed
        places.pos_embed = nn.Parameter(table)

    def said(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `FlowTeacher.said`."""
        place = next(self.parameters()).device
        return text.encode(self.text, self.rows(texts).to(place))


def train(folder: Path, bank: Bank, ranks: Ranks, seed: int = 0) -> None:
    """Train every round, or go on with the round found in the folder."""
    for number, this in enumerate(ROUNDS, start=1):
        if (folder / f"flow-{number + 1}").exists():
            continue
        torch.manual_seed(seed)
        teacher = load(folder, number - 1) if number > 1 else EmojiTeacher()
        teacher.to(device()).train().compile_parts()
        training = Training(teacher, folder / f"flow-{number}", this.cycles, PEAK, DECAY)
        training.ranks = ranks
        LOG.info("round %d of %d", number, len(ROUNDS))
        with patch.object(nn.functional, "scaled_dot_product_attention", attend):
            training.run(_loss(teacher, bank, this, f"flow-{number}-{seed}", ranks))


def _loss(teacher: EmojiTeacher, bank: Bank, this: Round, seed: str, ranks: Ranks):
    def loss_of(update: int) -> Tensor:
        source = random.Random(f"{seed}-{update}-{ranks.rank}")
        batch = bank.batch(BATCH // ranks.size, source, this.mix)
        normal = 2**0.5 * torch.erfinv(2 * batch.even.clamp(1e-4, 1 - 1e-4) - 1)
        sigma = torch.sigmoid(this.level_mean + this.level_deviation * normal)
        level = sigma[:, None, None, None]
        x_t = (1 - level) * batch.x0 + level * batch.eps
        with torch.autocast(device().type, torch.bfloat16):
            velocity = teacher.velocity(x_t, sigma, teacher.said(batch.said)).float()
        return (velocity - (batch.eps - batch.x0)).square().mean()

    return loss_of


def load(folder: Path, number: int = len(ROUNDS)) -> EmojiTeacher:
    """The averaged teacher of a round, as far as it is trained, in evaluation mode."""
    from safetensors.torch import load_file

    teacher = EmojiTeacher()
    state = load_file(folder / f"flow-{number}" / "state.safetensors")
    teacher.load_state_dict(part(state, "average."))
    return teacher.to(device()).eval()
