"""Linear and convolutional layers whose frozen weight is stored packed or on the CPU.

The weight exists in the network's number format only while a forward or a backward of its layer
runs: nothing unpacked is saved for the backward, which unpacks once more. There is no state per
forward, so any number of forwards may wait for their backwards. Gradients go to the input alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.grad import conv2d_input

from .offload import HostWeight, OffloadRing
from .weight_formats import Parts, WeightFormat


class _Product(torch.autograd.Function):
    """A layer's output, whose backward unpacks the weight once more."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: FrozenLayer) -> Tensor:
        ctx.layer, ctx.shape = layer, input.shape
        bias = None if layer.bias is None else layer.bias.to(input.dtype)
        with layer.unpacked(input.dtype) as weight:
            return layer.product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with ctx.layer.unpacked(gradient.dtype) as weight:
            return ctx.layer.input_gradient(ctx.shape, gradient, weight), None


class FrozenLayer(nn.Module):
    """What both kinds share: where the weight lies, and how it comes from there."""

    bias: Tensor | None
    format: WeightFormat
    shape: torch.Size
    dtype: torch.dtype
    names: tuple[str, ...]
    host: HostWeight | None
    _ring: tuple[OffloadRing] | None  # in a tuple, so that it is not a child of every layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as the layer computes with it: a copy, made anew at each access."""
        with self.unpacked(self.dtype) as weight, torch.no_grad():
            return weight.clone()

    @property
    def stored_bytes(self) -> int:
        """Bytes of what is stored, on whichever side."""
        if self.host is not None:
            return self.host.data.numel()
        return sum(part.numel() * part.element_size() for part in self._parts())

    @contextmanager
    def unpacked(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weight on the device, in `dtype`; valid inside the `with` only."""
        if self.host is None or self._ring is None:
            yield self.format.unpack(self._parts(), self.shape, dtype)
            return
        with self._ring[0].holding(self.host) as parts:
            yield self.format.unpack(parts, self.shape, dtype)

    def to_host(self, ring: OffloadRing) -> None:
        """Move what is stored into the CPU's memory; it visits the device through `ring`."""
        host = HostWeight.of(self._parts(), pinned=ring.pinned)
        for name in self.names:
            del self._buffers[name]
        self.names, self.host, self._ring = (), host, (ring,)
        ring.fit(host.data.numel())

    def repack(self, found: WeightFormat) -> None:
        """Store the weight in another format, on the same side as before."""
        ring = self._ring
        with torch.no_grad():
            self._store(found, found.pack(self.weight))
        if ring is not None:
            self.to_host(ring[0])

    def _store(self, found: WeightFormat, parts: Parts) -> None:
        self.format, self.host, self._ring = found, None, None
        self.names = tuple(f"stored_{index}" for index in range(len(parts)))
        for name, part in zip(self.names, parts, strict=True):
            self.register_buffer(name, part, persistent=False)

    def _parts(self) -> Parts:
        return tuple(self.get_buffer(name) for name in self.names)

    def forward(self, input: Tensor) -> Tensor:
        """As the plain layer's, in the input's format."""
        return _Product.apply(input, self)  # type: ignore[return-value]

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer's output with that weight and bias."""
        raise NotImplementedError

    def input_gradient(self, shape: torch.Size, gradient: Tensor, weight: Tensor) -> Tensor:
        """The gradient of an input of that shape, from the output's."""
        raise NotImplementedError


class FrozenLinear(FrozenLayer, nn.Linear):  # type: ignore[override]
    """A linear layer with a stored weight."""

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `FrozenLayer.product`."""
        return F.linear(input, weight, bias)

    def input_gradient(self, shape: torch.Size, gradient: Tensor, weight: Tensor) -> Tensor:
        """As `FrozenLayer.input_gradient`."""
        return gradient @ weight


class FrozenConv2d(FrozenLayer, nn.Conv2d):  # type: ignore[override]
    """A two-dimensional convolution with a stored weight."""

    def __new__(cls, *sizes: Any, **named: Any) -> nn.Conv2d:  # type: ignore[misc]
        """PEFT makes a LoRA's convolutions by calling its base layer's class: those are plain."""
        return nn.Conv2d(*sizes, **named) if sizes or named else super().__new__(cls)

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As `FrozenLayer.product`."""
        return self._conv_forward(input, weight, bias)

    def input_gradient(self, shape: torch.Size, gradient: Tensor, weight: Tensor) -> Tensor:
        """As `FrozenLayer.input_gradient`."""
        numbers: Any = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, weight, gradient, *numbers)


KINDS: dict[type[nn.Module], type[FrozenLayer]] = {
    nn.Linear: FrozenLinear,
    nn.Conv2d: FrozenConv2d,
}


def can_be_frozen(layer: nn.Module) -> bool:
    """Whether `freeze` knows this layer: a plain one whose weight is not trained."""
    if type(layer) not in KINDS:
        return False
    weight = layer.weight
    assert isinstance(weight, Tensor)
    plain = getattr(layer, "padding_mode", "zeros") == "zeros"
    return plain and not isinstance(getattr(layer, "padding", 0), str) and not weight.requires_grad


@torch.no_grad()
def freeze(layer: nn.Module, found: WeightFormat, device: torch.device) -> None:
    """Turn a layer that `can_be_frozen` into its stored kind, in place, and move it to `device`.

    The object stays the same, so whoever holds it (a LoRA layer, a hook) needs to know nothing.
    """
    weight = layer._parameters.pop("weight")
    assert weight is not None
    bias = layer._parameters["bias"]
    if bias is not None:
        layer._parameters["bias"] = nn.Parameter(bias.data.to(device), requires_grad=False)
    layer.__class__ = KINDS[type(layer)]
    assert isinstance(layer, FrozenLayer)
    layer.shape, layer.dtype = weight.shape, weight.dtype
    layer._store(found, found.pack(weight.data.to(device)))
