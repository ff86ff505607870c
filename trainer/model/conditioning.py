"""What a network is told besides the latent: encoded prompts, and for SDXL the image's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..device import to_device

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Encoded:
    """One encoder's output for one prompt: tokens (1, T, D) and pooled (1, P) or None."""

    tokens: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts of a batch.

    Attributes:
        context: text tokens for (cross-)attention, shape (B, T, D).
        pooled: one vector a prompt (SDXL, SD3), shape (B, P).
        time_ids: SDXL's size conditioning, shape (B, 6).
        repeatable: whether attention over the context may see it several times. A UNet's
            cross-attention gives the very same output for a context repeated whole, which makes
            prompts of different lengths batchable exactly; SD3's joint attention does not.
        masked: whether the network is told `lengths`, which makes padded prompts exact, too.
        lengths: how many tokens of each prompt count, shape (B,); None: all.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    repeatable: bool = True
    masked: bool = False
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = (self.context, self.pooled, self.time_ids)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def index(self, index: Tensor | slice | list[int]) -> Conditioning:
        """The prompts at `index` of the batch."""
        return self._map(lambda tensor: tensor[index])

    def repeat(self, count: int) -> Conditioning:
        """The batch `count` times over: (a, b) -> (a, b, a, b)."""
        return self._map(lambda tensor: tensor.repeat(count, *[1] * (tensor.dim() - 1)))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """The same on another device or in another dtype."""

        def moved(tensor: Tensor) -> Tensor:
            if device is not None:
                tensor = to_device(tensor, torch.device(device))
            return tensor.to(dtype=dtype) if tensor.is_floating_point() else tensor

        return self._map(moved)

    def zeros(self) -> Conditioning:
        """The all-zero prompt that some models were trained with as unconditional input."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, context=torch.zeros_like(self.context), pooled=pooled)

    def with_size(self, height: int, width: int) -> Conditioning:
        """With SDXL's size conditioning: original = target = (height, width), crop (0, 0)."""
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        rows = to_device(ids, self.context.device).repeat(len(self), 1)
        return replace(self, time_ids=rows)

    def batches_exactly_with(self, other: Conditioning) -> bool:
        """Whether one batch of both predicts the same as two: UNets always, SD3 at one length."""
        exact = self.repeatable or self.masked
        return exact or self.context.shape[1] == other.context.shape[1]

    @staticmethod
    def cat(items: Sequence[Conditioning]) -> Conditioning:
        """One batch of all items, brought to a common context length first."""
        length = common_length([item.context.shape[1] for item in items], items[0].repeatable)
        contexts = [_lengthen(item.context, length, item.repeatable) for item in items]
        return Conditioning(
            torch.cat(contexts),
            _cat([item.pooled for item in items]),
            _cat([item.time_ids for item in items]),
            items[0].repeatable,
            items[0].masked,
            torch.cat([item.num_tokens() for item in items]) if items[0].masked else None,
        )

    def num_tokens(self) -> Tensor:
        """How many tokens of each prompt count, shape (B,)."""
        if self.lengths is not None:
            return self.lengths
        return torch.full((len(self),), self.context.shape[1], device=self.context.device)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        values = {"pooled": self.pooled, "time_ids": self.time_ids, "lengths": self.lengths}
        changed = {name: None if v is None else change(v) for name, v in values.items()}
        return replace(self, context=change(self.context), **changed)


@dataclass(frozen=True)
class PromptPair:
    """What guidance needs of a batch: its prompts, and the negative prompts of the guided rows."""

    conditional: Conditioning
    unconditional: Conditioning

    @classmethod
    def of(cls, conditional: Conditioning, negative: Conditioning) -> PromptPair:
        """The prompts, each against the same negative prompt (batch size 1)."""
        return cls(conditional, negative.repeat(len(conditional)))

    def to(self, device: torch.device | str) -> PromptPair:
        """The same on another device."""
        return PromptPair(self.conditional.to(device), self.unconditional.to(device))

    def index(self, rows: slice) -> PromptPair:
        """Those rows."""
        return PromptPair(self.conditional.index(rows), self.unconditional.index(rows))


def common_length(lengths: Sequence[int], repeatable: bool) -> int:
    """The context length that a batch of these lengths gets: common multiple, or the longest."""
    return math.lcm(*lengths) if repeatable else max(lengths)


def _lengthen(context: Tensor, length: int, repeatable: bool) -> Tensor:
    """Repeated whole up to `length`, or padded with zero tokens."""
    current = context.shape[1]
    if current == length:
        return context
    if repeatable:
        return context.repeat(1, length // current, 1)
    return torch.nn.functional.pad(context, (0, 0, 0, length - current))


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    assert len(present) in (0, len(tensors)), "some conditionings lack what others have"
    return torch.cat(present) if present else None
