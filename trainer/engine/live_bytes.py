"""Peak bytes of live tensors on any device, counted by storage at every operation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts tensors that were there at the start and all that operations make.

    The exact live sum is taken whenever the sum without frees would pass the peak so far, so the
    peak is exact at the granularity of operations, and cheap. What a kernel allocates inside
    itself is not seen. Fake tensors count as if they had their numbers.
    """

    def __init__(
        self, resident: Iterable[torch.Tensor], elsewhere: Iterable[torch.Tensor] = ()
    ) -> None:
        """Args:
        resident: tensors that are there already; views of them count nothing more.
        elsewhere: tensors that stand for another memory and are not counted, whoever writes them.
        """
        super().__init__()
        self._elsewhere = {StorageWeakRef(t.untyped_storage()).cdata for t in elsewhere}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bound = 0
        self.peak = 0
        for tensor in resident:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata in self._elsewhere:
            return
        known = self._storages.get(reference.cdata)
        if known is not None and not known[0].expired():
            return
        self._storages[reference.cdata] = (reference, storage.nbytes())
        self._bound += storage.nbytes()
        if self._bound > self.peak:
            self._settle()

    def _settle(self) -> None:
        self._storages = {k: v for k, v in self._storages.items() if not v[0].expired()}
        self._bound = sum(size for _, size in self._storages.values())
        self.peak = max(self.peak, self._bound)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result
