"""Stage `flow`: a small MMDiT in SD3's layout and its text model, trained together in rounds.

Flow matching on latents of the bank: x_t = (1 - sigma) x0 + sigma eps, and the network predicts
eps - x0. The text features are narrow while training; the export pads them with zeros to SD3's
widths, together with zero columns in the two layers that read them, which changes nothing.

The first round has 16 tokens a picture, each of 2 x 2 latents, which is cheap and learns what
things are; the others have 64, one for each latent. Which of its many things the picture of an open
caption becomes is decided at sigma .8 to .95, where the best denoiser of these pictures goes from
their mean to one of them: the later rounds train there, and a linear head has to name what a noisy
picture shows, so that the features behind the decision form early.

In the last round many captions are those of other pictures, as captions from the web are: then the
teacher draws what is asked only if it is guided, as large ones do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from shapes_teacher_common import LOG, Ranks, Training, device, part
from shapes_teacher_denoiser import FlowTeacher, start_as_identity
from torch import Tensor, nn

from . import text
from .bank import Bank
from .naming import NAMING_WEIGHT, NamingHead

DEPTH, SIDE, BATCH = 4, 8, 128
PEAK, DECAY = 1.5e-3, 0.98
NAMED_AFTER = 3
"""The block after which the head reads."""


@dataclass(frozen=True)
class Round:
    """Side of a token in latents; mean and deviation of sigma's logit; cycles of updates.

    `wrong` is the share of captions that are another picture's.
    """

    patch: int
    level_mean: float
    level_deviation: float
    cycles: tuple[int, ...]
    wrong: float = 0.0


ROUNDS = (
    Round(2, 0.4, 1.1, (4379, 3942)),
    Round(1, 0.4, 1.1, (1480,)),
    Round(1, 1.4, 1.1, (1800,)),
    Round(1, 1.6, 1.0, (3600,), wrong=0.4),
)


class EmojiTeacher(FlowTeacher):
    """The denoiser and its text model, with narrow text features, and a head that names things."""

    def __init__(self, patch: int) -> None:
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
        self.head = NamingHead(64 * DEPTH)
        self.transformer.transformer_blocks[NAMED_AFTER - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, given, made: tuple[Tensor, Tensor]) -> None:
        self.head.features = made[1]

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
        teacher = load(folder, number - 1) if number > 1 else EmojiTeacher(this.patch)
        if number > 1 and ROUNDS[number - 2].patch != this.patch:
            teacher = finer(teacher)
        teacher.to(device()).train().compile_parts()
        training = Training(teacher, folder / f"flow-{number}", this.cycles, PEAK, DECAY)
        training.ranks = ranks
        LOG.info("round %d of %d", number, len(ROUNDS))
        training.run(_loss(teacher, bank, this, f"flow-{number}-{seed}", ranks))


def _loss(teacher: EmojiTeacher, bank: Bank, this: Round, seed: str, ranks: Ranks):
    def loss_of(update: int) -> Tensor:
        source = random.Random(f"{seed}-{update}-{ranks.rank}")
        batch = bank.batch(BATCH // ranks.size, source, this.wrong)
        normal = 2**0.5 * torch.erfinv(2 * batch.even.clamp(1e-4, 1 - 1e-4) - 1)
        sigma = torch.sigmoid(this.level_mean + this.level_deviation * normal)
        level = sigma[:, None, None, None]
        x_t = (1 - level) * batch.x0 + level * batch.eps
        with torch.autocast(device().type, torch.bfloat16):
            velocity = teacher.velocity(x_t, sigma, teacher.said(batch.said)).float()
        loss = (velocity - (batch.eps - batch.x0)).square().mean()
        return loss + NAMING_WEIGHT * teacher.head.loss(batch)

    return loss_of


def finer(coarse: EmojiTeacher) -> EmojiTeacher:
    """A teacher of 64 tokens that starts with what the one of 16 has learnt.

    A token's place in the picture stays what it was, for the table of places is twice as fine.
    """
    teacher, state = EmojiTeacher(1), coarse.state_dict()
    kept = teacher.state_dict()["transformer.pos_embed.pos_embed"]
    state["transformer.pos_embed.pos_embed"] = kept
    into = state["transformer.pos_embed.proj.weight"]
    state["transformer.pos_embed.proj.weight"] = into.mean((2, 3), keepdim=True) * 2
    out = state["transformer.proj_out.weight"]
    state["transformer.proj_out.weight"] = out.view(4, 16, -1).mean(0)
    state["transformer.proj_out.bias"] = state["transformer.proj_out.bias"].view(4, 16).mean(0)
    teacher.load_state_dict(state)
    return teacher


def load(folder: Path, number: int = len(ROUNDS)) -> EmojiTeacher:
    """The averaged teacher of a round, as far as it is trained, in evaluation mode."""
    from safetensors.torch import load_file

    teacher = EmojiTeacher(ROUNDS[number - 1].patch)
    state = load_file(folder / f"flow-{number}" / "state.safetensors")
    teacher.load_state_dict(part(state, "average."), strict=number == len(ROUNDS))
    return teacher.to(device()).eval()
