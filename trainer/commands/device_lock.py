"""One run at a time per device, across all that share the data folder: the queue and terminals."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator

import torch

from ...app.config.request import DistillRequest
from ...app.environment.launched import place
from ...app.library.home import home
from ...app.runs.directory import RunDirectory
from ...app.runs.exit_note import in_queue
from ...app.runs.lock import live_owner, owned
from ...app.runs.process_identity import NotedProcess
from ...core.errors import RunError
from ...core.files import atomic_write
from ..device import NUMBERED, choose_device
from .run_status import Interrupt

PAUSE_SECONDS = 0.5
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
log = logging.getLogger("dpdmd_studio.commands")


def device_name(device: torch.device) -> str:
    """The device as a file name, such as "cuda-0": the same card has the same name everywhere."""
    if device.type in ("cpu", "mps"):
        return _plain(device.type + _other_machine())
    index = device.index or 0
    shown = [part.strip() for part in os.environ.get(VISIBLE.get(device.type, ""), "").split(",")]
    name = shown[index] if index < len(shown) and shown[index] else str(index)
    return _plain(f"{device.type}-{name}{_other_machine()}")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "-" for c in name)


def _other_machine() -> str:
    """This machine's name if the run's first process is on another, which may share the folder."""
    where = place()
    return f"-{socket.gethostname()}" if where.rank != where.local_rank else ""


@contextlib.contextmanager
def device_held(run: RunDirectory, interrupt: Interrupt) -> Iterator[None]:
    """Hold the device of the run while the block runs; a job of the queue waits for it.

    Each process of a run holds its own device; those that share a CPU hold it once.

    Raises:
        RunError: another run holds it, and this one was not started by the queue.
        SettingsError: the device cannot be used.
    """
    device = choose_device(DistillRequest.from_dict(run.settings()).config.device)
    if device.type not in NUMBERED and place().local_rank:
        yield
        return
    path = home() / "locks" / f"{device_name(device)}.json"
    with atomic_write.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    def refusal(owner: NotedProcess) -> str:
        what = owner.about or "another program"
        return (
            f"{device} is in use: {what} (process {owner.pid}) runs on it, and one run at a time "
            f"does. Wait for it; or let this run follow by itself: {_how_to_queue(run)}. Another "
            "--device is possible at the same time."
        )

    should_stop, told = interrupt.should_stop(run), False
    with contextlib.ExitStack() as stack:
        while True:
            if in_queue() and (owner := live_owner(path)) is not None:
                if not told:
                    about = owner.about or owner.pid
                    log.info("Waiting for %s: %s runs on it", device, about)
                told = True
                if should_stop():
                    raise KeyboardInterrupt
                time.sleep(PAUSE_SECONDS)
                continue
            try:
                stack.enter_context(owned(path, about=str(run.path), refusal=refusal))
                break
            except RunError:
                if not in_queue():
                    raise
        yield


def _how_to_queue(run: RunDirectory) -> str:
    if run.path.resolve().parent == (home() / "runs").resolve():
        return f"`dpdmd-studio runs start {run.path.name}` adds it to the queue"
    return "`distill --queue` adds a run to the queue"
