"""Seconds and memory of an update before a run: a few updates of a run that is thrown away."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...app.config.distill_config import DistillConfig
from ...app.config.request import DistillRequest, ModelFiles
from ...app.runs.directory import RunDirectory
from ..device import choose_device, choose_dtype, dtype_name, free_memory
from .device_lock import device_held
from .distill import create_run, prepare
from .open_session import open_session
from .run_status import Interrupt

UPDATES = 5
PROMPT = "a photo"


def measured_updates(model: ModelFiles, config: DistillConfig) -> tuple[float, int | None]:
    """(median seconds, peak bytes) of student updates with their fake updates.

    Bytes are those allocated on a CUDA device; None elsewhere.

    Nothing of it is kept but the prompt's encoding.

    Raises:
        DPDMDError: whatever would end a run with these settings; the device is in use.
    """
    quick = replace(config, evaluation_prompts=0, evaluate_every=0, preview_every=0)
    with tempfile.TemporaryDirectory(prefix="dpdmd-") as folder:
        output = str(Path(folder) / "unused.safetensors")
        request = DistillRequest(model=model, config=quick, output=output)
        run = create_run(Path(folder) / "run", request, [PROMPT], overwrite=True)
        with run.lock(), Interrupt() as interrupt, device_held(run, interrupt):
            prepare(run)
            return _timed(run, interrupt)


def _timed(run: RunDirectory, interrupt: Interrupt) -> tuple[float, int | None]:
    trainer = open_session(run).trainer
    device = trainer.device
    module = getattr(torch, device.type, None)
    synchronize: Callable[[], object] = getattr(module, "synchronize", lambda: None)
    trainer.update()  # the first one warms up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # encoding the prompt is no update
    seconds = []
    for _ in range(UPDATES):
        if interrupt.asked:  # there is nothing to keep
            raise KeyboardInterrupt
        started = time.perf_counter()
        trainer.update()
        synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return statistics.median(seconds), peak


def number_format(device: str) -> str:
    """The number format that a run on this device takes unless it is told one, such as bfloat16."""
    return dtype_name(choose_dtype("auto", choose_device(device)))


def free_bytes(device: str) -> int | None:
    """Bytes that a run can take on the device, or None if it has no memory of its own."""
    return free_memory(choose_device(device))
