"""Weights that stay in the CPU's memory and visit the device a layer at a time.

Two buffers on the device hold the layer in use and the one that comes next. What comes next is
learned from the order of earlier passes; a wrong guess costs a copy, never a wrong result. On CUDA
and XPU the copies run beside the computation, on a stream of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .weight_formats import Parts

ALIGNMENT = 256  # bytes; what device kernels like tensors to begin at
SLOTS = 2
WITH_STREAMS = ("cuda", "xpu")
log = logging.getLogger("dpdmd_studio.offload")


@dataclass(frozen=True, eq=False)  # each is a key of its own
class HostWeight:
    """What a layer stores, in one stretch of the CPU's memory.

    Attributes:
        data: bytes, pinned where the device can copy from pinned memory by itself.
        layout: offset, dtype, shape and strides of each part.
    """

    data: Tensor
    layout: tuple[tuple[int, torch.dtype, torch.Size, tuple[int, ...]], ...]

    @classmethod
    def of(cls, parts: Parts, *, pinned: bool) -> HostWeight:
        """A copy of the parts."""
        layout, end = [], 0
        for part in parts:
            layout.append((end, part.dtype, part.shape, part.stride()))
            end += -(-part.numel() * part.element_size() // ALIGNMENT) * ALIGNMENT
        weight = cls(_host_bytes(end, pinned), tuple(layout))
        for view, part in zip(weight.parts(weight.data), parts, strict=True):
            view.copy_(part)
        return weight

    def parts(self, data: Tensor) -> Parts:
        """The parts as they lie in `data`, bytes like `self.data` or longer."""
        views = []
        for start, dtype, shape, strides in self.layout:
            stretch = data[start : start + shape.numel() * dtype.itemsize]
            views.append(stretch.view(dtype).as_strided(shape, strides))
        return tuple(views)


def _host_bytes(count: int, pinned: bool) -> Tensor:
    if pinned:
        try:
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("Memory cannot be pinned (%s); copies are slower.", str(error)[:80])
    return torch.empty(count, dtype=torch.uint8)


class OffloadRing(nn.Module):
    """The two buffers on the device, shared by all layers of a network."""

    def __init__(self, device: torch.device) -> None:
        """Args:
        device: where the layers compute.
        """
        super().__init__()
        self.device = device
        self.pinned = device.type in WITH_STREAMS
        self._backend: Any = getattr(torch, device.type) if self.pinned else None
        self._stream: Any = self._backend.Stream(device) if self._backend else None
        self._after: dict[tuple[bool, HostWeight | None, HostWeight], HostWeight] = {}
        self.fit(0)

    def fit(self, size: int) -> None:
        """Make the buffers hold `size` bytes, if they do not; call between passes only."""
        if getattr(self, "slot_0", None) is not None and self.slots[0].numel() >= size:
            return
        if self._backend:
            self._backend.synchronize(self.device)
        for index in range(SLOTS):
            fresh = torch.empty(size, dtype=torch.uint8, device=self.device)
            self.register_buffer(f"slot_{index}", fresh, persistent=False)
        self._held: list[HostWeight | None] = [None] * SLOTS
        self._last_slot = 0
        self._last: HostWeight | None = None
        self._key: tuple[bool, HostWeight | None, HostWeight] | None = None
        # the side stream must not write before what the compute stream did there before
        self._used = [self._event() for _ in range(SLOTS)]
        self._ready: list[Any] = [None] * SLOTS

    @property
    def slots(self) -> list[Tensor]:
        """The buffers, bytes."""
        return [self.get_buffer(f"slot_{index}") for index in range(SLOTS)]

    @contextmanager
    def holding(self, weight: HostWeight) -> Iterator[Parts]:
        """The weight's parts on the device; they are valid inside the `with` only."""
        if weight not in self._held:
            self._bring(weight)
        slot = self._held.index(weight)
        self._last_slot = slot
        if self._ready[slot] is not None:
            self._current_stream().wait_event(self._ready[slot])
        following = self._learn(weight)
        if following is not None and following not in self._held:
            self._bring(following)
        try:
            yield weight.parts(self.slots[slot])
        finally:
            self._used[slot] = self._event()

    def _bring(self, weight: HostWeight) -> None:
        """Begin to copy into the buffer that was not used last."""
        slot = (self._last_slot + 1) % SLOTS
        self._held[slot] = None
        context = self._backend.stream(self._stream) if self._backend else nullcontext()
        with context:
            if self._used[slot] is not None:
                self._stream.wait_event(self._used[slot])
            target = self.slots[slot][: weight.data.numel()]
            target.copy_(weight.data, non_blocking=self.pinned)
            self._ready[slot] = self._event()
        self._held[slot] = weight

    def _learn(self, weight: HostWeight) -> HostWeight | None:
        """Note that `weight` came after the last two; what came after this one before, if known.

        Forward, backward and what checkpointing recomputes inside it run through the layers in
        different orders: the last two layers and whether a backward is running tell them apart.
        """
        if self._key is not None:
            self._after[self._key] = weight
        self._key = (_in_backward(), self._last, weight)
        self._last = weight
        return self._after.get(self._key)

    def _current_stream(self) -> Any:
        return self._backend.current_stream(self.device)

    def _event(self) -> Any:
        """An event on the stream that is current; None without streams."""
        if not self._backend:
            return None
        event = self._backend.Event()
        event.record(self._backend.current_stream(self.device))
        return event


def _in_backward() -> bool:
    """Whether autograd is running a backward, as torch's own checkpointing asks for it."""
    return torch._C._current_graph_task_id() >= 0
