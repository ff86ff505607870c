"""How many images are drawn at once: as many as the device has room for.

The first is drawn alone and tells what one takes; as many as the device has free follow. Where a
device does not tell what it has free, all that were asked for are drawn, until memory runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..device import free_memory, is_out_of_memory, measured_peak, release_memory

T = TypeVar("T")
USED_SHARE = 0.85
"""Of the free memory: images that are alike take alike, and an allocator leaves gaps."""
log = logging.getLogger("dpdmd_studio.memory")


class Portions:
    """The number of images to draw at once on a device; what was found out is kept."""

    def __init__(self, device: torch.device, most: int) -> None:
        """Args:
        most: images at once that were asked for.
        """
        self._device, self._most = device, most
        self._each: dict[bool, int] = {}  # bytes of an image, by whether it is guided

    def size(self, *, guided: bool) -> int:
        """How many to draw at once."""
        free = free_memory(self._device)
        if free is None:
            return self._most
        each = self._each.get(guided)
        if each is None:
            return 1
        return max(1, min(self._most, int(USED_SHARE * free / each)))

    def attempt(self, count: int, work: Callable[[], T], *, guided: bool) -> T | None:
        """The result of `work` on `count` images; None if that was too many for the device.

        Raises:
            RuntimeError: as `work`; too little memory for one image, too.
        """
        try:
            with measured_peak(self._device) as peak:
                result = work()
            self._each[guided] = max(1, (peak() or 0) // count)
            return result
        except RuntimeError as error:
            if count == 1 or not is_out_of_memory(error):
                raise
        self._most = count // 2
        log.debug("Out of memory with %d images at once; from here on %d", count, self._most)
        release_memory(self._device)
        return None
