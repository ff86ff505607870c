"""Draws scenes of the emoji world as tensors, many at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from dpdmd_studio.trainer.toys.emoji import captions
from torch import Tensor
from torch.nn import functional

from .pictures import Pictures

JITTER = 10
"""Each channel of a background is off by up to this much of 255."""


class Drawer:
    """Puts pictures at their places on their backgrounds.

    The pictures are kept a little larger than a frame that they would fill, so that none is
    enlarged and none shrinks by more than a half, which bilinear reading can do without artefacts.
    """

    def __init__(self, drawn: Pictures, resolution: int) -> None:
        self.resolution = resolution
        self.index = {pair: i for i, pair in enumerate(zip(drawn.names, drawn.styles, strict=True))}
        rgba = torch.from_numpy(drawn.pixels).permute(0, 3, 1, 2).float() / 255
        side = round(resolution * 1.0625)
        if side < rgba.shape[-1]:
            rgba = functional.interpolate(rgba, (side, side), mode="bilinear", antialias=True)
        self.rgba = rgba.half()

    def draw(self, scenes: Sequence, source: random.Random, backgrounds: dict) -> Tensor:
        """Pictures of the scenes in [0, 1], shape (N, 3, R, R)."""
        rgba = self.rgba[[self.index[s.name, s.style] for s in scenes]].float()
        return self.compose(rgba, scenes, colours(scenes, source, backgrounds))

    def compose(self, rgba: Tensor, scenes: Sequence, behind: Tensor) -> Tensor:
        """Premultiplied (N, 4, S, S) at the scenes' places over colours (N, 3), in [0, 1]."""
        scale = torch.tensor([s.scale for s in scenes])
        free = (1 - scale).clamp(min=0)
        theta = torch.zeros(len(scenes), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, 0, 2] = -free * torch.tensor([s.right for s in scenes]) / scale
        theta[:, 1, 2] = -free * torch.tensor([s.down for s in scenes]) / scale
        shape = [len(scenes), 4, self.resolution, self.resolution]
        grid = functional.affine_grid(theta, shape, align_corners=False)
        placed = functional.grid_sample(rgba, grid, align_corners=False)
        return placed[:, :3] + (1 - placed[:, 3:]) * behind[:, :, None, None]


def colours(scenes: Sequence, source: random.Random, backgrounds: dict) -> Tensor:
    """The scenes' backgrounds, each a little off its name's colour, in [0, 1], shape (N, 3)."""
    found = [
        [value + source.uniform(-JITTER, JITTER) for value in backgrounds[s.background]]
        for s in scenes
    ]
    return (torch.tensor(found) / 255).clamp(0, 1)


def to_uint8(images: Tensor) -> np.ndarray:
    """What a host shows for images (N, 3, H, W): uint8 (N, H, W, 3)."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def anywhere(scene: captions.Scene, source: random.Random) -> captions.Scene:
    """The scene at any size and place: what the judge and the decoder have to take."""
    low, high = captions.SIZES["small"][0], captions.SIZES["large"][1]
    right, down = source.uniform(-1, 1), source.uniform(-1, 1)
    return replace(scene, scale=source.uniform(low, high), right=right, down=down)
