"""Stage `bank`: latents of many scenes, encoded once, for denoisers to be trained on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dpdmd_studio.trainer.toys.emoji import captions
from shapes_teacher_common import device
from torch import Tensor

from .drawing import Drawer

PLACEMENTS, AT_A_TIME = 96, 232
"""Scenes for each picture, and images encoded at a time."""
DROPOUT = 0.1
"""Share of empty captions, for guidance."""


@dataclass(frozen=True)
class Mix:
    """Of the captions that name a thing: shares that say its class instead, or name another."""

    open: float = 0.0
    wrong: float = 0.0


@dataclass(frozen=True)
class Batch:
    """What one update of a denoiser sees.

    `x0` and `eps` are latents and noise (N, C, h, w), `even` (N,) is spread evenly over 0 to 1.
    """

    said: list[str]
    x0: Tensor
    eps: Tensor
    even: Tensor


class Bank:
    """Latents (N, C, h, w) in half precision, with the scene that each of them shows."""

    def __init__(self, path: Path) -> None:
        kept = torch.load(path, weights_only=True)
        self.latents: Tensor = kept["latents"]
        self.scenes = [captions.Scene(*facts) for facts in kept["scenes"]]

    def batch(self, size: int, source: random.Random, mix: Mix) -> Batch:
        """Random scenes, each with noise and a caption."""
        chosen = [source.randrange(len(self.scenes)) for _ in range(size)]
        said = [self._caption(self.scenes[i], source, mix) for i in chosen]
        x0 = self.latents[chosen].float()
        draws = torch.Generator("cpu").manual_seed(source.getrandbits(62))
        eps = torch.randn(x0.shape, generator=draws)
        even = (torch.randperm(size, generator=draws) + torch.rand(size, generator=draws)) / size
        return Batch(said, *(each.to(device()) for each in (x0, eps, even)))

    def _caption(self, scene: captions.Scene, source: random.Random, mix: Mix) -> str:
        """What a scene is told to be, now and then nothing."""
        if source.random() < DROPOUT:
            return ""
        said = captions.random_said(scene, source)
        if said.noun == scene.name:
            if source.random() < mix.open:
                said = replace(said, noun=captions.world().class_of[scene.name])
            elif source.random() < mix.wrong:
                other = source.choice(self.scenes)
                said = replace(captions.random_said(other, source), noun=other.name)
        return said.caption(source.randrange(3))


@torch.inference_mode()
def write(path: Path, drawer: Drawer, encode: Callable[[Tensor], Tensor], seed: int = 0) -> None:
    """Every picture that the teacher may see in `PLACEMENTS` scenes, encoded; nothing if there."""
    if path.exists():
        return
    here, source = captions.world(), random.Random(f"bank-{seed}")
    pairs = [pair for pair in drawer.index if pair not in here.unseen_pairs]
    scenes = []
    for name, style in pairs * PLACEMENTS:
        free = captions.random_scene(source)
        scenes.append(replace(free, name=name, style=style))
    parts = []
    for start in range(0, len(scenes), AT_A_TIME):
        images = drawer.draw(scenes[start : start + AT_A_TIME], source, here.backgrounds)
        with torch.autocast(device().type, torch.bfloat16):
            parts.append(encode(images).half().cpu())
    facts = [(s.name, s.style, s.background, s.scale, s.right, s.down) for s in scenes]
    torch.save({"latents": torch.cat(parts), "scenes": facts}, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
