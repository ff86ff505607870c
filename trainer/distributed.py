"""One run in several processes, on several devices or machines: what they say to each other.

Every rank draws the random numbers of the whole batch and works on its own rows; the gradients are
summed, so that the adapters stay equal everywhere. Short messages go over the CPU (gloo), the
gradients over the devices (NCCL where there is one). A failure travels as a message, too: wherever
the others are, the next message they wait for tells them. With one rank all of this does nothing.

Accelerate connects the ranks, gathers and sums. Its barriers, `main_process_first` among them, wait
on the GPU and bring no word of a failure, and its shares of a list need a connection: those are
made of messages here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..app.environment.launched import Place, place
from ..core.errors import RunError, SettingsError
from .device import is_device_lost, is_out_of_memory

T = TypeVar("T")

# The first rank draws, measures and saves while the others wait for its next message; one that has
# died is noticed by its closed connection, not by this.
TIMEOUT = timedelta(hours=12)
# One that has failed tells the others; where they do not ask at once, as the first while it draws,
# it says so to the user and stays for their next question before it leaves.
TELL_SECONDS = 30.0
STAY_SECONDS = 600.0
BUCKET_NUMBERS = 1 << 24
# Ranks on unlike devices may round differently; a lost or doubled gradient is far above this.
ADAPTER_TOLERANCE = 1e-3
DEVICE_BACKENDS = {"cuda": "nccl", "xpu": "xccl"}


class OtherRankError(RunError):
    """Another rank has ended the run."""


class Ranks:
    """The processes of this run; this one is number `rank` of `size`."""

    def __init__(self, where: Place) -> None:
        """Args:
        where: this process's place; with others it has to be connected (`joined`).
        """
        self.rank, self.size = where.rank, where.size

    @property
    def is_main(self) -> bool:
        """Whether this rank alone writes, draws and reports."""
        return self.rank == 0

    # Shares of the work

    def own_rows(self, count: int) -> slice:
        """This rank's rows of a batch of `count`: shares differ by one at most.

        Raises:
            SettingsError: there are fewer images than ranks.
        """
        if count < self.size:
            raise SettingsError(
                f"batch_size is {count} for {self.size} processes, and each needs an image of its "
                f"own. Set --batch-size to {self.size} or more, or start fewer processes."
            )
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up every rank's gradients in place, in few large pieces.

        Losses are weighted by a rank's share of the batch, so the sum is the batch's gradient.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        for bucket in _buckets(gradients):
            total = _summed(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            parts = total.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def mean(self, values: Sequence[float], count: int) -> list[float]:
        """Means of every rank's values, weighted by its rows of a batch of `count`."""
        if self.size == 1:
            return list(values)
        rows = self.own_rows(count)
        weight = (rows.stop - rows.start) / count
        weighted = self.exchange([value * weight for value in values])
        return [sum(column) for column in zip(*weighted, strict=True)]

    # Messages

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in their order; each rank has to ask.

        Args:
            value: something small that can be pickled.

        Raises:
            OtherRankError: a rank has failed, or its process is gone.
        """
        if self.size == 1:
            return [value]
        with _explained():
            messages = _gathered({"value": value})
        for rank, message in enumerate(messages):
            if "failed" in message:
                raise OtherRankError(f"Process {rank} of {self.size} failed: {message['failed']}")
        return [message["value"] for message in messages]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return any(self.exchange(bool(flag)))

    def of_main(self, value: T) -> T:
        """The first rank's value."""
        return self.exchange(value if self.is_main else None)[0]

    def attempt(self, work: Callable[[], T]) -> T:
        """The result of `work`; if one rank runs out of memory in it, so do all.

        Raises:
            torch.OutOfMemoryError: another rank ran out of memory.
        """
        try:
            result = work()
        except RuntimeError as error:
            if is_out_of_memory(error):
                self.any(True)
            raise
        if self.any(False):
            raise torch.OutOfMemoryError("out of memory in another process of this run")
        return result

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first rank does the block before the others do."""
        if not self.is_main:
            self.exchange(None)
        yield
        if self.is_main:
            self.exchange(None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What ends this rank within the block ends the others."""
        try:
            yield
        except BaseException as error:
            if self.size > 1 and not isinstance(error, OtherRankError):
                _tell_failure((str(error) or type(error).__name__)[:500])
            raise

    # Checks

    def require_same(self, what: str, value: Any) -> None:
        """Raise RunError unless all ranks have the same `what`."""
        found = self.exchange(value)
        if any(other != found[0] for other in found):
            raise RunError(
                f"The processes of this run differ in {what}: {', '.join(map(str, found))}. All "
                "machines need the same files, settings and versions, and like devices."
            )

    def use_device(self, device: torch.device) -> None:
        """Work on `device`, which has to be of the same kind on all ranks."""
        if self.size > 1:
            self.require_same("their device", device.type)
            if device.index is not None:
                getattr(torch, device.type).set_device(device)

    def require_equal(self, what: str, tensors: Sequence[Tensor]) -> None:
        """Raise RunError unless these tensors are the same on all ranks, up to rounding."""
        if self.size == 1:
            return
        with torch.no_grad():
            sums = torch.stack([tensor.float().abs().sum() for tensor in tensors]).tolist()
        found = self.exchange([sum(sums), sum(i * value for i, value in enumerate(sums))])
        for other in found:
            for value, first in zip(other, found[0], strict=True):
                if not abs(value - first) <= ADAPTER_TOLERANCE * abs(first) + 1e-12:
                    raise RunError(
                        f"The processes of this run no longer have the same {what} (checksums "
                        f"{found}). Resume the run: all begin from the last saved state."
                    )


# Accelerate is imported where there are other ranks, and there alone.


def _gathered(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's message; over the CPU, so that no device waits."""
    from accelerate.utils import gather_object

    return gather_object([message])


def _summed(flat: Tensor) -> Tensor:
    """The sum of all ranks' tensors; over the CPU from a device without a backend of its own."""
    from accelerate.utils import reduce

    carried = flat if flat.device.type in _backends() else flat.cpu()
    with _explained():
        return cast(Tensor, reduce(carried, "sum"))


def _tell_failure(failure: str) -> None:
    """Tell the others of this rank's failure, as soon as they ask; some never do, or are gone."""

    def tell() -> None:
        with contextlib.suppress(RuntimeError):
            _gathered({"failed": failure})

    # a thread, since nothing else ends the waiting for one that never asks
    last = threading.Thread(target=tell, daemon=True)
    last.start()
    last.join(TELL_SECONDS)
    if last.is_alive():
        atexit.register(last.join, STAY_SECONDS)  # runs before `_leave`


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of about `BUCKET_NUMBERS`: a copy of all would need their memory."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(t.numel() for t in group) + tensor.numel() > BUCKET_NUMBERS:
            yield group
            group = []
        group.append(tensor)
    yield group


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A broken connection in words."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, OtherRankError) or is_out_of_memory(error) or is_device_lost(error):
            raise
        raise OtherRankError(
            "Another process of this run has ended or cannot be reached "
            f"({str(error).splitlines()[0][:200]}). Its own message says why; states saved so far "
            "are kept: resume the run."
        ) from error


@functools.cache
def joined() -> Ranks:
    """This process among those of its run, connected on first use; alone without a launcher.

    Raises:
        SettingsError: the launcher's variables are incomplete, or this PyTorch or Accelerate cannot
            do it.
        OtherRankError: the others cannot be reached.
    """
    where = place()
    if where.size > 1:
        _connect(where)
    return Ranks(where)


def _connect(where: Place) -> None:
    if not dist.is_available():
        raise SettingsError(
            f"A run in {where.size} processes needs a PyTorch built with torch.distributed; "
            f"{torch.__version__} is not. Start the run in one process."
        )
    from accelerate import PartialState

    backends = _backends()
    on_cpu = list(backends) == ["cpu"]
    if on_cpu:  # else Accelerate sets a number of threads of its own
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    names = ",".join(f"{kind}:{backend}" for kind, backend in backends.items())
    with _explained():
        try:
            state = PartialState(
                cpu=on_cpu, backend=backends["cpu"] if on_cpu else names, timeout=TIMEOUT
            )
        except (ImportError, ValueError, NotImplementedError) as error:
            raise SettingsError(
                f"Accelerate cannot connect the {where.size} processes of this run: {error} Start "
                "them with `accelerate launch --multi_gpu` or `torchrun`, or one process alone."
            ) from error
    assert state.num_processes == where.size
    atexit.register(_leave)


def _backends() -> dict[str, str]:
    """Kind of device -> what carries its tensors: gloo, and a device's own where there is one."""
    found = {"cpu": "gloo"}
    for kind, backend in DEVICE_BACKENDS.items():
        module = getattr(torch, kind, None)
        if module is not None and module.is_available() and dist.is_backend_available(backend):
            found[kind] = backend
    return found


def _leave() -> None:
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
