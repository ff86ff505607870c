"""The flow teacher's file, read back: what a second teacher of the same pictures begins with."""

from __future__ import annotations

from dpdmd_studio.trainer.toys.emoji import captions
from safetensors.torch import load_file
from shapes_teacher_common import part
from shapes_teacher_export import load_text
from torch import nn

FILE = captions.FACTS.parent / "emoji-sd3.safetensors"


def fill_autoencoder(slim: nn.Module) -> None:
    """Fill a slim autoencoder from the file, whose tensors are padded; of latents the first ones"""
    stored = part(load_file(FILE), "first_stage_model.")
    corners = {
        name: stored[name][tuple(slice(n) for n in own.shape)].float()
        for name, own in slim.state_dict().items()
    }
    slim.load_state_dict(corners)


def fill_text(model: nn.Module) -> None:
    """Fill a text model from the file."""
    load_text(model, {name: value.float() for name, value in load_file(FILE).items()})
