"""LoRA layers that cost less than PEFT's own: fewer passes over the activations, fewer copies kept.

PEFT's forward brings a layer's input to the adapter's float32 and back. Here everything is computed
in the input's own format, by copies of the adapter that are made for several layers at once. What
is computed is the same sum, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (its usual name)

Halves = tuple[Tensor, Tensor]
# Layers whose adapters are cast in one operator: their copies are little beside one activation.
GROUP = 16


class Copies:
    """The active adapter in the network's format, for the layers that are computing now.

    A group of layers is cast when one of them is asked for, and dropped when another group is: a
    graph keeps what its backward needs, and what gradient checkpointing runs again casts anew.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """`layers`: all adapted layers of a network, about in the order in which they compute."""
        self._layers = layers
        for place, layer in enumerate(layers):
            layer.copies, layer.place = self, place
        self.drop()

    def drop(self) -> None:
        """Forget them, since the adapter may be another from here on, or its weights."""
        self._first, self._made = -1, list[Halves]()

    @torch.no_grad()
    def of(self, place: int, role: str, dtype: torch.dtype) -> Halves:
        """A and B of the layer in that place."""
        first = place - place % GROUP
        if first != self._first:
            group = self._layers[first : first + GROUP]
            halves = [(layer.lora_A[role], layer.lora_B[role]) for layer in group]
            masters = [half.weight for pair in halves for half in pair]
            copies = [torch.empty_like(master, dtype=dtype) for master in masters]
            torch._foreach_copy_(copies, masters)  # type: ignore[reportPrivateImportUsage]
            self._first = first
            self._made = list(zip(copies[::2], copies[1::2], strict=True))
        return self._made[place - first]


class _CastBefore(torch.autograd.Function):
    """Copies as if they were cast here: their gradients go to the master weights, in their format.

    Both halves of a layer in one node: it has a third of the cost of two.
    """

    @staticmethod
    def forward(ctx: Any, down: Tensor, up: Tensor, *copies: Tensor) -> Halves:
        ctx.formats = down.dtype, up.dtype
        return copies  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, down: Tensor, up: Tensor) -> Any:  # type: ignore[override]
        first, second = ctx.formats
        return down.to(first), up.to(second), None, None


def _halves(layer: Any, dtype: torch.dtype) -> Halves:
    """A and B of the active role in the format of the layer's input."""
    role = layer._active_adapter[0]
    down, up = layer.lora_A[role].weight, layer.lora_B[role].weight
    if dtype == down.dtype or torch.compiler.is_compiling():  # a compiler fuses casts itself
        return down.to(dtype), up.to(dtype)
    copies = layer.copies.of(layer.place, role, dtype)
    return _CastBefore.apply(down, up, *copies) if torch.is_grad_enabled() else copies


class AdaptedLinear(lora.Linear):
    """base(x) + B A x of the active role, with the sum inside the second product."""

    copies: Copies
    place: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, shape (..., features)."""
        x = x.contiguous()  # of a slice torch takes one product an image, with a weight of its own
        result = self.base_layer(x)
        if self.disable_adapters:
            return result
        down, up = _halves(self, x.dtype)
        hidden = F.linear(x, down)
        rows = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), up.t())
        return rows.view(result.shape)


class AdaptedConv2d(lora.Conv2d):
    """base(x) + B A x of the active role; B is a convolution of 1 x 1."""

    copies: Copies
    place: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, shape (B, C, H, W)."""
        result = self.base_layer(x)
        if self.disable_adapters:
            return result
        down, up = _halves(self, x.dtype)
        kind: Any = self.lora_A[self._active_adapter[0]]  # knows stride and padding
        return result + F.conv2d(kind._conv_forward(x, down, None), up)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv2d: AdaptedConv2d,
}
