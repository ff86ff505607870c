"""A device that runs out of memory, played by counting on the CPU."""

from __future__ import annotations

import torch
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes


class Card(LiveBytes):
    """A device that has run out when more than `limit` bytes of new tensors are alive."""

    def __init__(self, limit: int) -> None:
        super().__init__([])
        self.limit, self.refused = limit, 0

    def _risen(self) -> None:
        super()._risen()
        if self.live > self.limit:
            self.refused += 1
            self._storages.clear()
            self.live = self.peak = 0
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
