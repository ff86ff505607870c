"""Peak bytes of live tensors on any device: told by the device, or counted at every operation."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts tensors that were there at the start and all that operations make.

    A storage says itself when it is freed, so the sum and its peak are exact at the granularity of
    operations. What a kernel allocates inside itself is not seen. Fake tensors count as if they had
    their numbers.
    """

    def __init__(
        self, resident: Iterable[torch.Tensor], elsewhere: Iterable[torch.Tensor] = ()
    ) -> None:
        """Args:
        resident: tensors that are there already; views of them count nothing more.
        elsewhere: tensors that stand for another memory and are not counted, whoever writes them.
        """
        super().__init__()
        self._elsewhere = {tensor.untyped_storage()._cdata for tensor in elsewhere}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.live = 0
        self.peak = 0
        for tensor in resident:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._elsewhere:
            return
        freed = functools.partial(self._free, key, size)
        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        if self.live > self.peak:
            self._risen()

    def _free(self, key: int, size: int, _: object) -> None:
        del self._storages[key]
        self.live -= size

    def _risen(self) -> None:
        """There is more alive than ever before."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result


class OwnBytes(LiveBytes):
    """Counts what PyTorch allocates on one kind of device.

    That is neither a file that is mapped into memory, whose pages the system drops where it must,
    nor a network without numbers on the meta device.
    """

    def __init__(self, kind: str, resident: Iterable[torch.Tensor]) -> None:
        self._kind = kind
        super().__init__(resident)

    def _add(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == self._kind and tensor.untyped_storage().resizable():
            super()._add(tensor)


@contextlib.contextmanager
def peak_bytes(
    device: torch.device, resident: Iterable[torch.Tensor] = ()
) -> Iterator[Callable[[], int]]:
    """Tells how many bytes were alive at most in the block, with all that was there before it.

    CUDA and XPU tell by themselves. Elsewhere all operations are counted, which takes time.

    Args:
        resident: tensors that are there from the start, for where they have to be counted.
    """
    module: Any = getattr(torch, device.type, None)
    if device.type in ("cuda", "xpu"):
        module.synchronize(device)
        module.reset_peak_memory_stats(device)
        yield lambda: module.max_memory_allocated(device)
        return
    with OwnBytes(device.type, resident) as counted:
        yield lambda: counted.peak
