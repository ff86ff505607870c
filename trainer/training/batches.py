"""Inputs of updates as pure functions of seed and step: prompts, initial noise, random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...app.config.distill_config import DistillConfig
from ...app.prompts.expansion import PromptSource
from ..device import to_device
from ..model.conditioning import Conditioning, PromptPair


@dataclass(frozen=True)
class Batch:
    """Inputs of one update: initial noise (B, C, H, W) and the prompts of the same batch size."""

    noise: torch.Tensor
    prompts: PromptPair

    def __len__(self) -> int:
        return len(self.noise)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(to_device(self.noise, device), self.prompts.to(device))


def stream_generator(seed: int, stream: str, step: int, index: int = 0) -> torch.Generator:
    """A CPU generator that depends on these four numbers alone."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def initial_noise(seed: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """The initial noise of one image: fp32 randn(C, h, w) from a CPU generator seeded `seed`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class BatchSource:
    """Batches drawn from encoded prompts, on the CPU."""

    def __init__(
        self,
        config: DistillConfig,
        prompts: PromptSource,
        encoded: Mapping[str, Conditioning],
        negative: Conditioning,
        latent_shapes: list[tuple[int, int, int]],
    ) -> None:
        """Args:
        encoded: conditioning of every prompt that `prompts` can draw in this run, batch size 1.
        negative: the teacher's unconditional input, batch size 1.
        latent_shapes: (C, h, w) of each resolution; one is drawn per update.
        """
        self._config, self._prompts, self._encoded = config, prompts, encoded
        self._negative, self._shapes = negative, latent_shapes

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """The random draws of one use at one step."""
        return stream_generator(self._config.seed, stream, step, index)

    def batch(self, stream: str, step: int, index: int = 0) -> Batch:
        """Prompts and initial noise of one update."""
        generator = self.generator(f"{stream}-batch", step, index)
        size = self._config.batch_size
        shape = self._shapes[int(torch.randint(len(self._shapes), (), generator=generator))]
        noise = torch.randn(size, *shape, generator=generator)
        first = prompt_index(stream, index, size)
        texts = [self._prompts.draw(step, first + i) for i in range(size)]
        conditional = Conditioning.cat([self._encoded[text] for text in texts])
        return Batch(noise, PromptPair.of(conditional, self._negative))


def prompt_index(stream: str, index: int, batch_size: int) -> int:
    """Number of an update's first prompt within its step: the student's first, then the fakes'."""
    return 0 if stream == "student" else batch_size * (1 + index)


def prompts_per_step(config: DistillConfig) -> int:
    """How many prompts one step draws at most."""
    return config.batch_size * (1 if config.share_rollouts else 1 + config.fake_updates)
