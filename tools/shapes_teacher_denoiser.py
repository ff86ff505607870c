"""Stage `denoiser`: a small MMDiT in SD3's layout and a small CLIP text model, trained together.

Flow matching on the codes of random scenes, which are the latents of the first stage:
x_t = (1 - sigma) x0 + sigma eps, and the network predicts eps - x0. The text features are narrow
while training; the export pads them with zeros to SD3's widths, together with zero columns in the
two layers that read them, which changes nothing in what the network computes.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import shapes_teacher_vae as vae
import torch
from shapes_teacher_common import Training, device, part
from torch import Tensor, nn

DEPTH, TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH = 3, 128, 2, 16
SHIFT = 3.0
CAPTION_DROPOUT = 0.1
BATCH, CYCLES, PEAK, DECAY = 128, (3900,), 2e-3, 0.995

UNKNOWN, BEGIN, END = 0, 1, 2
BEGIN_ID, END_ID = 49406, 49407
TOKEN_IDS = {
    ",": 267, "a": 320, "an": 550, "the": 518, "on": 525, "in": 530, "at": 536,
    "shape": 6448, "circle": 7117, "square": 3999, "triangle": 14615, "cross": 3417,
    "red": 736, "orange": 4287, "yellow": 4481, "green": 1901, "blue": 1746, "purple": 5496,
    "small": 2442, "medium": 8675, "large": 3638,
    "left": 1823, "right": 1155, "top": 1253, "bottom": 5931, "centre": 2916,
    "background": 5994, "white": 1579, "grey": 5046, "black": 1449, "pink": 3360,
    "turquoise": 19899, "brown": 2866,
}  # fmt: skip
"""Every word of a caption and its id in CLIP's vocabulary; rows 3, 4, ... of the embedding."""
ROWS = {word: row for row, word in enumerate(TOKEN_IDS, start=3)}


def token_rows(texts: list[str]) -> Tensor:
    """Rows of the embedding, shape (N, TEXT_LENGTH): begin, words, then ends up to the length."""
    rows = torch.full((len(texts), TEXT_LENGTH), END)
    for line, text in zip(rows, texts, strict=True):
        words = re.findall(r"[a-z]+|[^\sa-z]", text.lower())[: TEXT_LENGTH - 2]
        line[0] = BEGIN
        line[1 : 1 + len(words)] = torch.tensor([ROWS.get(w, UNKNOWN) for w in words])
    return rows


def text_model() -> nn.Module:
    """A small CLIP text model for the words of captions, not trained yet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=3 + len(TOKEN_IDS), hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_WIDTH // 32, max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu", bos_token_id=BEGIN, eos_token_id=END, pad_token_id=END,
        )
    )  # fmt: skip


class FlowTeacher(nn.Module):
    """A denoiser in SD3's layout, `transformer`, and a text model that `said` asks."""

    transformer: nn.Module
    text: nn.Module

    def compile_parts(self) -> None:
        """Let torch's compiler fuse the networks; the same function, a quarter faster."""
        self.transformer.compile()
        self.text.compile()

    def said(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Context (N, L, D) and pooled features (N, D) of captions."""
        raise NotImplementedError

    def velocity(self, x_t: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """eps - x0 as the network sees it, shape of x_t; sigma has shape (N,)."""
        context, pooled = text
        return self.transformer(
            hidden_states=x_t, timestep=sigma * 1000, encoder_hidden_states=context,
            pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip


class Teacher(FlowTeacher):
    """The denoiser and its text model, with narrow text features."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import SD3Transformer2DModel

        self.transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=DEPTH,
            attention_head_dim=64, num_attention_heads=DEPTH, joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=64 * DEPTH, pooled_projection_dim=TEXT_WIDTH,
            pos_embed_max_size=8, qk_norm="rms_norm",
        )  # fmt: skip
        start_as_identity(self.transformer)
        self.text = text_model()

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Context (N, L, D) after the final norm, and its row at the first end token (N, D)."""
        context = self.text(input_ids=rows).last_hidden_state
        first_end = (rows == END).int().argmax(dim=1)
        return context, context[torch.arange(len(rows), device=rows.device), first_end]

    def said(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `FlowTeacher.said`."""
        return self.encode(token_rows(texts).to(next(self.parameters()).device))


def start_as_identity(transformer: nn.Module) -> None:
    """Zero the modulations and the output, so that every block starts as the identity."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def shifted(levels: Tensor) -> Tensor:
    """SD3's time shift: sigma = shift u / (1 + (shift - 1) u)."""
    return SHIFT * levels / (1 + (SHIFT - 1) * levels)


def train(folder: Path, seed: int, compiled: bool = False) -> Training:
    """Train the denoiser, or go on with the training found in the folder."""
    import shapes_scenes

    torch.manual_seed(seed)
    place = device()
    teacher = Teacher().to(place)
    training = Training(teacher, folder / "denoiser", CYCLES, PEAK, DECAY)
    if compiled:
        teacher.compile_parts()

    def loss_of(update: int) -> Tensor:
        generator = np.random.default_rng([seed, 3, update])
        scenes = shapes_scenes.random_scenes(BATCH, generator)
        x0 = torch.from_numpy(vae.code(scenes, shapes_scenes.plan(scenes, generator))).to(place)
        rows = token_rows([training_caption(scene, generator) for scene in scenes]).to(place)
        noise = torch.Generator("cpu").manual_seed((seed << 32) + update)
        eps = torch.randn(x0.shape, generator=noise).to(place)
        sigma = shifted((torch.randperm(BATCH, generator=noise) + 0.5) / BATCH).to(place)
        level = sigma[:, None, None, None]
        velocity = teacher.velocity((1 - level) * x0 + level * eps, sigma, teacher.encode(rows))
        return (velocity - (eps - x0)).square().mean()

    training.run(loss_of)
    return training


def training_caption(scene, generator: np.random.Generator) -> str:
    """A caption of the scene that is not held out, or now and then the empty one."""
    import shapes_scenes
    from dpdmd_studio.trainer.toys import shapes

    if generator.random() < CAPTION_DROPOUT:
        return ""
    while True:
        said = shapes_scenes.random_said(generator)
        if not shapes.is_held_out({name: getattr(scene, name) for name in said}):
            return shapes.caption(scene, said, int(generator.integers(2)))


def load(folder: Path) -> Teacher:
    """The averaged teacher of a finished stage, in evaluation mode, on `device()`."""
    from safetensors.torch import load_file

    teacher = Teacher()
    teacher.load_state_dict(part(load_file(folder / "denoiser" / "state.safetensors"), "average."))
    return teacher.to(device()).eval()


@torch.inference_mode()
def sample(
    teacher: FlowTeacher, texts: list[str], noise: Tensor, steps: int, scale: float
) -> Tensor:
    """Latents of guided Euler steps on the shifted grid, from noise (N, 16, 8, 8).

    velocity = uncond + scale (cond - uncond); no second evaluation when the scale is 1.
    """
    text = teacher.said(texts)
    if scale != 1.0:
        empty = teacher.said([""] * len(texts))
        text = (torch.cat([text[0], empty[0]]), torch.cat([text[1], empty[1]]))
    x_t, sigmas = noise, shifted(torch.linspace(1, 0, steps + 1))
    for sigma, after in itertools.pairwise(sigmas):
        twice = x_t if scale == 1.0 else torch.cat([x_t, x_t])
        velocity = teacher.velocity(twice, sigma.expand(len(twice)).to(x_t), text)
        if scale != 1.0:
            conditional, unconditional = velocity.chunk(2)
            velocity = unconditional + scale * (conditional - unconditional)
        x_t = x_t + (after - sigma) * velocity
    return x_t
