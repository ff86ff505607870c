"""Low-rank pairs: what they add to a weight, and the exact rewritings that file formats need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoraError, NonFiniteError
from ..families.base import EQUAL_THIRDS
from .shapes import check_pair

MAX_SHIFT = 60  # binary places; 2**60 is an exact factor in every format that fp32 can hold


@dataclass(frozen=True)
class LoraPair:
    """One low-rank update, W + scale * up @ down.

    Args:
        down: shape (rank, in) or, for a convolution, (rank, in, height, width).
        up: shape (out, rank) or (out, rank, 1, 1).
        scale: the factor at strength 1.0 (alpha / rank).
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.down.shape[0]

    def to(self, device: torch.device) -> LoraPair:
        """The pair on another device."""
        return LoraPair(self.down.to(device), self.up.to(device), self.scale)

    def check(self, name: str) -> LoraPair:
        """This pair, or an error naming `name` if shapes disagree or a value is not finite."""
        check_pair(name, tuple(self.down.shape), tuple(self.up.shape))
        for half, tensor in (("down", self.down), ("up", self.up)):
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"{name}: the LoRA's {half} weight holds NaN or infinity. Take an undamaged "
                    "file; in a run of your own go back to its last good state and lower the "
                    "learning rate."
                )
        return self


@dataclass(frozen=True)
class Difference:
    """One update that is written out, W + scale * value: of a weight or a bias.

    Args:
        value: of the parameter's shape; axes of length one at its end do not count.
        scale: the factor at strength 1.0.
    """

    value: Tensor
    scale: float = 1.0

    def to(self, device: torch.device) -> Difference:
        """The difference on another device."""
        return Difference(self.value.to(device), self.scale)

    def check(self, name: str) -> Difference:
        """This difference, or an error naming `name` if a value is not finite."""
        if not bool(torch.isfinite(self.value).all()):
            raise NonFiniteError(
                f"{name}: the LoRA's difference holds NaN or infinity. Take an undamaged file."
            )
        return self


Update = LoraPair | Difference
"""What a LoRA file adds to one parameter."""


def delta(update: Update, shape: torch.Size) -> Tensor:
    """What the update adds to a parameter of `shape` at strength 1.0, in fp32.

    dW = scale * up @ down, a convolution's kernel being part of down's columns; or scale * value.
    """
    if isinstance(update, Difference):
        return (update.scale * update.value.float()).reshape(shape)
    pair = update
    product = pair.up.float().flatten(1) @ pair.down.float().flatten(1)
    if product.numel() != math.prod(shape) or product.shape[0] != shape[0]:
        raise LoraError(
            f"a pair of down {tuple(pair.down.shape)} and up {tuple(pair.up.shape)} does not fit a "
            f"weight of shape {tuple(shape)}; the LoRA was made for another model."
        )
    return (pair.scale * product).reshape(shape)


def with_scale_in_up(pair: LoraPair) -> LoraPair:
    """The same update with scale 1: up is multiplied by it (formats without alpha)."""
    return LoraPair(pair.down.float(), pair.up.float() * pair.scale, 1.0)


def with_alpha(pair: LoraPair, alpha: float) -> LoraPair:
    """The same update with scale alpha / rank; what differs goes into up."""
    scale = alpha / pair.rank
    up = pair.up if pair.scale == scale else pair.up.float() * (pair.scale / scale)
    return LoraPair(pair.down, up, scale)


def block_diagonal(
    parts: Mapping[int, LoraPair], shares: tuple[int, ...] = EQUAL_THIRDS
) -> LoraPair:
    """Separate updates of the parts of a fused weight (q, k, v) as one exact update, scale 1.

    down = [down_q; down_k; down_v] (3r, in); up = diag(up_q, up_k, up_v) (all rows, 3r).
    A part that has no update contributes rows of zeros.

    Args:
        parts: some of the parts by their number; all with equal in.
        shares: the ratio of the rows of all parts.
    """
    baked = {part: with_scale_in_up(parts[part]) for part in range(len(shares)) if part in parts}
    units = {pair.up.shape[0] / shares[part] for part, pair in baked.items()}
    columns = {pair.down.shape[1] for pair in baked.values()}
    if len(units) != 1 or len(columns) != 1 or set(parts) - set(baked):
        sizes = sorted((pair.down.shape[1], pair.up.shape[0]) for pair in parts.values())
        raise LoraError(
            f"The parts of a fused layer must have the same inputs, and rows in the ratio "
            f"{shares}; found (inputs, rows) {sizes}."
        )
    unit = int(units.pop())
    down = torch.cat([pair.down for pair in baked.values()])
    up = down.new_zeros(sum(shares) * unit, down.shape[0])
    column = 0
    for part, pair in baked.items():
        row, rows = sum(shares[:part]) * unit, shares[part] * unit
        up[row : row + rows, column : column + pair.rank] = pair.up
        column += pair.rank
    return LoraPair(down, up, 1.0)


def balanced(pair: LoraPair) -> LoraPair:
    """The same update in fp32, both halves of like magnitude by an exact power of two."""
    down, up = pair.down.float(), pair.up.float()
    high_down, high_up = float(down.abs().max()), float(up.abs().max())
    if high_down > 0 and high_up > 0:
        exponent = round((math.log2(high_down) - math.log2(high_up)) / 2)
        exponent = max(-MAX_SHIFT, min(MAX_SHIFT, exponent))
        down, up = down * 2.0**-exponent, up * 2.0**exponent
    return LoraPair(down, up, pair.scale)


def concatenated(pairs: Sequence[LoraPair], shape: torch.Size) -> LoraPair:
    """One pair that adds what all of them add to a weight of `shape`; ranks add up, scale 1.

    s1 u1 d1 + s2 u2 d2 = [s1 u1, s2 u2] [d1; d2]. Each part is balanced by itself, so that a small
    one loses nothing to half precision beside a large one.
    """
    parts = [balanced(with_scale_in_up(pair)) for pair in pairs]
    down = torch.cat([part.down.reshape(part.rank, *shape[1:]) for part in parts])
    ones = (1,) * (len(shape) - 2)
    up = torch.cat([part.up.reshape(shape[0], part.rank, *ones) for part in parts], dim=1)
    return LoraPair(down, up, 1.0)


def cast(pair: LoraPair, dtype: torch.dtype, name: str) -> LoraPair:
    """The pair in `dtype`, its halves first brought to like magnitude by an exact power of two.

    Neither half then overflows where the product could be held, and small ones lose no bits.
    """
    even = balanced(pair)
    high = max(float(even.down.abs().max()), float(even.up.abs().max()))
    if high > torch.finfo(dtype).max:
        raise NonFiniteError(
            f"{name}: the LoRA's weights reach {high:.3g} and do not fit {dtype}. The run has "
            "diverged; go back to an earlier state."
        )
    return LoraPair(even.down.to(dtype).contiguous(), even.up.to(dtype).contiguous(), pair.scale)
