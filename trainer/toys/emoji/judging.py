"""Says what an image of the emoji world shows: its name and style, or that it is none of them.

A small residual network, fitted on real pictures alone, straight and through the decoder. It was
taught to refuse blends, halves, blur, noise, decoded nonsense, empty backgrounds and things that
are not in the world, and to look through brightness, contrast and saturation. Which probability
counts as recognised was settled before any teacher was measured, and stands in its file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

FILE = Path(__file__).parents[2] / "assets" / "emoji-judge.safetensors"
RESOLUTION = 64
WIDTHS = (48, 96, 144)
AT_A_TIME = 256


@dataclass(frozen=True)
class Verdict:
    """What one image shows; `name` is empty where nothing is recognised."""

    name: str
    style: str
    confidence: float
    """Probability of the likeliest name, 0 to 1."""


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), with a stride and more channels where asked."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images or features to features, halved in side where the stride is 2."""
        y = self.conv1(functional.relu(self.norm1(x)))
        return self.skip(x) + self.conv2(functional.relu(self.norm2(y)))


class JudgeNetwork(nn.Module):
    """Images (N, 3, 64, 64) in [0, 1] to logits of names with *none* last, and of styles."""

    def __init__(self, names: int, styles: int) -> None:
        super().__init__()
        one, two, three = WIDTHS
        self.stem = nn.Conv2d(3, one, 5, 2, 2)
        self.blocks = nn.Sequential(
            Block(one, one, 1), Block(one, two, 2), Block(two, two, 1),
            Block(two, three, 2), Block(three, three, 1), Block(three, three, 1),
        )  # fmt: skip
        self.norm = nn.GroupNorm(8, three)
        self.name, self.style = nn.Linear(4 * three, names + 1), nn.Linear(4 * three, styles)

    def features(self, images: Tensor) -> Tensor:
        """What both heads read, shape (N, 576): averages of the four quarters."""
        x = functional.relu(self.norm(self.blocks(self.stem(images - 0.5))))
        return functional.adaptive_avg_pool2d(x, 2).flatten(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the names, *none* last, and of the styles."""
        found = self.features(images)
        return self.name(found), self.style(found)


@dataclass(frozen=True)
class Judge:
    """The network with its names, its styles, and the probability that it must reach."""

    network: JudgeNetwork
    names: tuple[str, ...]
    styles: tuple[str, ...]
    threshold: float

    @torch.inference_mode()
    def verdicts(self, images: NDArray[np.uint8]) -> list[Verdict]:
        """What each image shows, uint8 RGB of shape (N, H, W, 3); larger ones are shrunk to 64."""
        found: list[Verdict] = []
        for start in range(0, len(images), AT_A_TIME):
            some = torch.from_numpy(images[start : start + AT_A_TIME]).permute(0, 3, 1, 2) / 255
            if some.shape[-2:] != (RESOLUTION, RESOLUTION):
                size = (RESOLUTION, RESOLUTION)
                some = functional.interpolate(some, size, mode="bilinear", antialias=True)
            found += self.read(*self.network(some))
        return found

    def read(self, names: Tensor, styles: Tensor) -> list[Verdict]:
        """Verdicts of the two heads' logits."""
        likeliest = names.softmax(-1).max(-1)
        verdicts = []
        for confidence, name, style in zip(
            likeliest.values.tolist(),
            likeliest.indices.tolist(),
            styles.argmax(-1).tolist(),
            strict=True,
        ):
            known = name < len(self.names) and confidence >= self.threshold
            verdicts.append(
                Verdict(
                    self.names[name] if known else "",
                    self.styles[style] if known else "",
                    confidence,
                )
            )
        return verdicts


@lru_cache(maxsize=1)
def judge(path: Path = FILE) -> Judge:
    """The judge out of its file."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["dpdmd.judge"])
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    network = JudgeNetwork(len(facts["names"]), len(facts["styles"]))
    network.load_state_dict(tensors)
    return Judge(
        network.eval(), tuple(facts["names"]), tuple(facts["styles"]), float(facts["threshold"])
    )
