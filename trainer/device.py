"""Which device and number format to use, chosen by trying them."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..app.environment.launched import place
from ..core.errors import DPDMDError, SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUMBERED = ("cuda", "xpu")  # kinds of device that a machine may have several of
WITH_PINNED_COPIES = ("cuda", "xpu")  # kinds that read the computer's memory by themselves
LIBRARIES_SAY = ("STATUS_ALLOC_FAILED", "OUT_OF_DEVICE_MEMORY")
"""How cuBLAS, cuDNN and Intel's runtime name a lack of memory that they run into by themselves."""
LOST_SAYS = (
    "unspecified launch failure",
    "device-side assert",
    "gpu is lost",
    "no cuda-capable device",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "launch timed out",
    "ecc error",
    "cuda error: unknown error",
    "cuda unknown error",
    "hip error: unknown error",
    "device_lost",
    "device lost",
)
"""How drivers say that a device has crashed or gone; it refuses whatever it is asked after that."""
LEFT_TO_DRIVER = 2**28
"""Bytes that a card's driver takes for kernels while a run goes on: assumed, not measured."""
log = logging.getLogger("dpdmd_studio.device")


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to train on: the one asked for if it works, else the first that does.

    Where a launcher has started several processes, each takes the one of its own number.

    Raises:
        SettingsError: the device asked for is not usable here.
    """
    candidates = ["cuda", "xpu", "mps", "cpu"] if wanted == "auto" else [wanted]
    reasons = []
    for kind in candidates:
        name = _own_device(kind)
        reason = _unusable(name)
        if reason is None:
            return torch.device(name)
        reasons.append(f"{name}: {reason}")
        if wanted == "auto" and _visible(kind):
            log.warning("The %s device is there but cannot be used: %s", name, reason)
    raise SettingsError(
        f"Device {wanted!r} cannot be used ({'; '.join(reasons)}). Use --device auto or cpu."
    )


def _own_device(kind: str) -> str:
    """The name of this process's device of a kind."""
    where = place()
    return f"{kind}:{where.local_rank}" if where.size > 1 and kind in NUMBERED else kind


def _visible(name: str) -> bool:
    """Whether torch sees such a device, usable or not."""
    backend = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    return backend is not None and backend.is_available()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device, without waiting for what the device has still to do.

    An ordinary copy to a GPU ends the queue of kernels: the host waits until all of them have run,
    and the device then waits for the host. One from pinned memory takes its place in the queue;
    the allocator of pinned memory keeps the source until it is done.
    """
    if device.type in WITH_PINNED_COPIES and tensor.device.type == "cpu":
        with contextlib.suppress(RuntimeError):  # the system allows only so much of it
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)  # from other memory it waits as ever
    return tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory: CUDA has a class for it, others say it."""
    words = ("out of memory", "not enough memory", "can't allocate memory", *LIBRARIES_SAY)
    named = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return named or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def is_device_lost(error: BaseException) -> bool:
    """Whether a device has crashed or is no longer there; this process can use it no more."""
    said = str(error).lower()
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, torch.OutOfMemoryError)
        and any(words in said for words in LOST_SAYS)
    )


@contextlib.contextmanager
def device_explained(
    error_class: type[DPDMDError], advice: str, lost: str = "then run this again."
) -> Iterator[None]:
    """Turns a lack of memory, or the loss of the device, into an error that says what to do.

    Args:
        advice: where memory ran out.
        lost: what to do once a device that has crashed or gone is there again.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = first_line(error)
        if is_device_lost(error):
            raise error_class(
                f"The device no longer answers ({said}). That is no lack of memory: its driver has "
                "crashed, or it was put to sleep, unplugged, too hot or clocked too high. Restart "
                f"the computer, {lost} If it happens again, update the driver."
            ) from error
        if not is_out_of_memory(error):
            raise
        raise error_class(f"The device ran out of memory ({said}). {advice}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def release_memory(device: torch.device) -> None:
    """Give memory that the allocator keeps for later back to the device."""
    gc.collect()
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if device.type != "cpu" and empty is not None:
        empty()


def _unusable(name: str) -> str | None:
    """Why a device fails a small computation with a gradient, or None if it works."""
    try:
        value = torch.ones(4, 4, device=name, requires_grad=True)
        (value @ value).sum().backward()
        if value.grad is None or float(value.grad.sum()) != 128.0:
            return "gives wrong results"
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The network's number format: float32 on a CPU, bfloat16 where it works, else float16."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    try:
        x = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
        bf16 = bool((x @ x == 8).all()) and (device.type != "cuda" or has_fast_bf16(device))
    except (RuntimeError, NotImplementedError):
        bf16 = False
    return torch.bfloat16 if bf16 else torch.float16


def has_fast_bf16(device: torch.device) -> bool:
    """Whether an accelerator computes in bfloat16 as fast as in float16.

    NVIDIA's do from compute capability 8.0 on; those before, such as Turing, emulate it.
    """
    if device.type != "cuda":
        return device.type == "xpu"
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def dtype_name(dtype: torch.dtype) -> str:
    """As settings call it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def describe_device(device: torch.device) -> str:
    """The device in words, such as "cuda (NVIDIA GeForce RTX 3060, 12.0 GB)"."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return f"cuda ({facts.name}, {facts.total_memory / 2**30:.1f} GB)"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return device.type


def memory_in_use(device: torch.device) -> int | None:
    """Peak bytes allocated on an accelerator, or the process's peak on a CPU where known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that an accelerator has of its own; None where it shares the computer's."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_properties(device).total_memory
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on an accelerator with memory of its own, or None.

    What its allocator holds and does not use counts as free; where the process has a limit
    (`limit_to_free`), nothing beyond it does.
    """
    module: Any = getattr(torch, device.type, None)
    if device.type not in ("cuda", "xpu") or not hasattr(module, "mem_get_info"):
        return None
    free, total = module.mem_get_info(device)
    allocated = module.memory_allocated(device)
    free += module.memory_reserved(device) - allocated
    share = getattr(module, "get_per_process_memory_fraction", lambda index: 1.0)(device.index)
    return free if share >= 1.0 else max(0, min(free, int(share * total) - allocated))


def free_computer_memory() -> int | None:
    """Bytes of the computer's own memory that programs can still take; None where it is unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def limit_to_free(device: torch.device) -> int | None:
    """Give this process what a card has free and no more, where its driver would spill; the bytes.

    A driver on Windows moves what a CUDA card cannot hold into the computer's memory. It says
    nothing, and all is many times as slow: no fallback that saves memory would ever be taken.
    Under the limit the allocator runs out of memory instead. None, and nothing done, elsewhere.
    """
    if sys.platform != "win32" or device.type != "cuda":
        return None
    torch.cuda.set_per_process_memory_fraction(1.0, device.index)  # none that was set before
    free = free_memory(device) or 0
    total = torch.cuda.get_device_properties(device).total_memory
    limit = max(0, free + torch.cuda.memory_allocated(device) - LEFT_TO_DRIVER)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device.index)
    log.info(
        "At most %.1f GB of the device's memory are used: what is more, a driver on Windows moves "
        "to the computer's memory, which makes a run many times as slow.",
        limit / 2**30,
    )
    return limit


@contextlib.contextmanager
def measured_peak(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Tells how many bytes the block took at most beside what was there; None where unknown."""
    module: Any = getattr(torch, device.type, None)
    if device.type not in ("cuda", "xpu"):
        yield lambda: None
        return
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    yield lambda: module.max_memory_allocated(device) - before


def faster_dtype(device: torch.device) -> str:
    """bfloat16 on a CPU that multiplies it twice as fast as float32 (one with AMX), else auto."""
    if device.type != "cpu":
        return "auto"
    return "bfloat16" if 2 * _seconds(torch.bfloat16) < _seconds(torch.float32) else "auto"


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some multiplications of matrices such as a small network has."""
    x, times = torch.ones(512, 512, dtype=dtype), []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(x, x)
        times.append(time.perf_counter() - started)
    return min(times)
