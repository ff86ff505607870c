"""Images that show nothing of the world, by kind: what the judge has to refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from dpdmd_studio.trainer.toys.emoji import captions
from torch import Tensor
from torch.nn import functional

from .drawing import Drawer, anywhere, colours


@dataclass(frozen=True)
class Spoiler:
    """Makes spoilt images out of the world's pictures and those of strangers.

    `encode` and `decode` are the autoencoder's; latents have about unit variance.
    """

    drawer: Drawer
    strangers: Drawer
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def images(self, kind: str, count: int, source: random.Random) -> Tensor:
        """Images of one of `KINDS`, shape (count, 3, R, R), in [0, 1]."""
        return getattr(self, f"_{kind}")(count, source).clamp(0, 1)

    def _drawn(self, scenes, source: random.Random) -> Tensor:
        return self.drawer.draw(scenes, source, captions.world().backgrounds)

    def _pairs(self, count: int, source: random.Random) -> tuple[Tensor, Tensor]:
        first, second = [], []
        while len(first) < count:
            one, other = _scene(source), _scene(source)
            if one.name.split()[-1] != other.name.split()[-1]:
                first.append(one)
                second.append(other)
        return self._drawn(first, source), self._drawn(second, source)

    def _blend(self, count: int, source: random.Random) -> Tensor:
        one, other = self._pairs(count, source)
        share = torch.tensor([source.uniform(0.38, 0.62) for _ in range(count)])
        return one.lerp(other, share[:, None, None, None])

    def _halves(self, count: int, source: random.Random) -> Tensor:
        one, other = self._pairs(count, source)
        side = one.shape[-1]
        mixed = one.clone()
        for i in range(count):
            cut = round(side * source.uniform(0.42, 0.58))
            if source.random() < 0.5:
                mixed[i, :, :, cut:] = other[i, :, :, cut:]
            else:
                mixed[i, :, cut:] = other[i, :, cut:]
        return mixed

    def _blur(self, count: int, source: random.Random) -> Tensor:
        images = self._drawn([_scene(source) for _ in range(count)], source)
        share = 64 / images.shape[-1]
        return torch.cat([blurred(image[None], source.uniform(4.5, 8) / share) for image in images])

    def _noise(self, count: int, source: random.Random) -> Tensor:
        images = self._drawn([_scene(source) for _ in range(count)], source)
        strength = torch.tensor([source.uniform(0.45, 0.9) for _ in range(count)])
        grain = torch.randn(images.shape, generator=_generator(source))
        return images + strength[:, None, None, None] * grain

    def _nonsense(self, count: int, source: random.Random) -> Tensor:
        one, other = (self.encode(images) for images in self._pairs(count, source))
        noise = torch.randn(one.shape, generator=_generator(source))
        made = []
        for i in range(count):
            kind = source.randrange(4)
            if kind == 0:
                latent = noise[i] * source.uniform(0.7, 1.1)
            elif kind == 1:
                cells = one[i].flatten(1)
                order = torch.randperm(cells.shape[1], generator=_generator(source))
                latent = cells[:, order].view_as(one[i])
            elif kind == 2:
                latent = one[i].lerp(other[i], source.uniform(0.4, 0.6))
            else:
                level = source.uniform(0.75, 0.9)
                latent = (1 - level) * one[i] + level * noise[i]
            made.append(latent)
        return self.decode(torch.stack(made))

    def _empty(self, count: int, source: random.Random) -> Tensor:
        scenes = [_scene(source) for _ in range(count)]
        side = self.drawer.resolution
        flat = colours(scenes, source, captions.world().backgrounds)[:, :, None, None]
        slope = torch.linspace(-0.5, 0.5, side)[None, None, :, None]
        steepness = torch.tensor([source.uniform(-0.3, 0.3) for _ in range(count)])
        blob = torch.randn(count, 3, 4, 4, generator=_generator(source))
        blob = functional.interpolate(blob, (side, side), mode="bicubic")
        strength = torch.tensor([source.choice((0, 0, 0.05, 0.15)) for _ in range(count)])
        spread = (slice(None), None, None, None)
        return flat + steepness[spread] * slope + strength[spread] * blob

    def _stranger(self, count: int, source: random.Random) -> Tensor:
        scenes = [_scene(source) for _ in range(count)]
        chosen = [source.randrange(len(self.strangers.rgba)) for _ in range(count)]
        behind = colours(scenes, source, captions.world().backgrounds)
        return self.strangers.compose(self.strangers.rgba[chosen].float(), scenes, behind)


KINDS = ("blend", "halves", "blur", "noise", "nonsense", "empty", "stranger")


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels; the border is mirrored."""
    reach = min(round(3 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.shape[1]
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    padded = functional.conv2d(
        padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels
    )
    return functional.conv2d(
        padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels
    )


def _scene(source: random.Random) -> captions.Scene:
    return anywhere(captions.random_scene(source), source)


def _generator(source: random.Random) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(source.getrandbits(62))
