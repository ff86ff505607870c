"""Seconds and peak memory on a device, and under a hard cap; on a CPU live bytes stand for it."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from dpdmd_studio.trainer.device import DTYPES
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from torch import Tensor

Row = dict[str, Any]
ENOUGH = 25.0  # seconds: no further repeats of a case beyond
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "xformers", "bitsandbytes")


class Unavailable(Exception):  # noqa: N818 (not a fault)
    """A case cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Options:
    """How everything is measured.

    Attributes:
        tiny: networks of a few thousand weights, for trying the whole on a CPU.
        repeats: timed updates of a case, fewer where they take long.
    """

    device: str = "cuda"
    dtype: str = "bfloat16"
    tiny: bool = False
    repeats: int = 5

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def number_format(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def on_cuda(self) -> bool:
        return self.place.type == "cuda"

    def needs_cuda(self, what: str) -> None:
        """End the case unless the device is CUDA or ROCm."""
        if not self.on_cuda:
            raise Unavailable(f"{what} needs a CUDA device; this is {self.device}")


def environment(options: Options) -> Row:
    """Device and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    named = platform.processor() or platform.machine()
    if options.on_cuda:
        facts = torch.cuda.get_device_properties(options.place)
        named = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB"
    return {"device": named, "python": platform.python_version(), "cuda": torch.version.cuda,
            "dtype": options.dtype, "tiny": options.tiny, **versions}  # fmt: skip


def synchronise(options: Options) -> None:
    """Wait until the device has done all it was given."""
    if options.place.type != "cpu":
        getattr(torch, options.place.type).synchronize()


def release(options: Options) -> None:
    """Give back what earlier cases held, and count peaks from here on."""
    gc.collect()
    if options.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds(work: Callable[[], Any], options: Options, warm_up: int = 1) -> Row:
    """Median, quartile-like extremes and number of timed calls after `warm_up` untimed ones."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    while len(times) < options.repeats and (len(times) < 1 or sum(times) < ENOUGH):
        synchronise(options)
        started = time.perf_counter()
        work()
        synchronise(options)
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "least": min(times), "most": max(times),
            "repeats": len(times)}  # fmt: skip


def peak(work: Callable[[], Any], tensors: Callable[[], Iterable[Tensor]], options: Options) -> Row:
    """Peak bytes, allocated and reserved, since `release`; `work` is done once more on a CPU."""
    if options.on_cuda:
        free, total = torch.cuda.mem_get_info()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"allocated": allocated, "reserved": reserved, "device_used": total - free}
    gc.collect()
    with LiveBytes(tensors()) as counted:
        work()
    return {"allocated": counted.peak, "reserved": None, "device_used": None}


class _CappedBytes(LiveBytes):
    """Raises what a full device raises once more than `limit` bytes are alive."""

    limit = 2**62

    def _risen(self) -> None:
        if self.live > self.limit:
            raise torch.OutOfMemoryError(f"out of memory: {self.live} bytes of {self.limit}")
        super()._risen()


@contextmanager
def capped(limit: float, tensors: Iterable[Tensor], options: Options) -> Iterator[None]:
    """No more than `limit` bytes: the allocator refuses them, on a CPU the count does."""
    if options.on_cuda:
        _, total = torch.cuda.mem_get_info()
        if limit > total:
            raise Unavailable(f"the device has {total / 2**30:.1f} GiB")
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    counter = _CappedBytes(tensors)
    counter.limit = int(limit)
    with counter:
        yield
