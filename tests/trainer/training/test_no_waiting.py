"""An update never makes the host wait for the device before its numbers are read."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.trainer import device as device_module
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.device import to_device
from tiny_runs import new_run
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
READS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero")


class Waits(TorchDispatchMode):
    """Notes what would stop a queue: copies that wait, and numbers that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func).rsplit(".", 1)[0]
        source = args[0].device if args and isinstance(args[0], torch.Tensor) else None
        if name == "aten._to_copy" and source != META and kwargs.get("device") == META:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self.found.append(f"{name} of {tuple(args[0].shape)}")
        if name == "aten.copy_" and {args[0].device, args[1].device} != {args[0].device}:
            self.found.append(name)
        if name in READS and source == META:
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("family", "shared", "more"),
    [
        ("sd1", True, {}),
        ("sdxl", True, {"real_guidance_high": 600, "micro_batch_size": 0, "batch_size": 6}),
        ("sd3", True, {"real_guidance_high": 800, "micro_batch_size": 0, "batch_size": 6}),
        ("sd3", False, {}),
    ],
)
def test_nothing_before_the_numbers_are_read_waits(
    family, shared, more, files, tmp_path, monkeypatch
):
    """The meta device stands for one that reads pinned memory by itself."""
    monkeypatch.setattr(device_module, "WITH_PINNED_COPIES", ("meta",))
    settings = {"batch_size": 2, "micro_batch_size": 1, "num_steps": 2, "teacher_steps": 2}
    settings |= more
    run = new_run(tmp_path, files[family], ema_decay=0.0, share_rollouts=shared, **settings)
    session = open_session(run)
    trainer = session.trainer
    session.call.network.to("meta")
    session.call.device = META
    gradients = trainer.gradients
    gradients.device, gradients.grids = META, trainer.grids.map(lambda tensor: tensor.to(META))
    with Waits() as waits:
        batch = trainer.batches.batch("student", 1).to(META)
        generator = trainer.batches.generator("student-levels", 1)
        _, samples = trainer.gradients.student(batch, generator)
        if not shared:
            batch = trainer.batches.batch("fake", 1).to(META)
            samples = trainer.gradients.samples(batch, trainer.batches.generator("fake-samples", 1))
        trainer.gradients.fake(samples, trainer.batches.generator("fake-levels", 1))
    assert waits.copies > 5
    assert not waits.found


def test_what_is_not_for_a_gpu_is_copied_as_ever():
    values = torch.randn(3)
    assert to_device(values, torch.device("cpu")) is values
    assert to_device(values, META).device == META


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_a_gpu_is_not_waited_for(family, files, tmp_path):
    run = new_run(tmp_path, files[family], ema_decay=0.0, batch_size=2, device="cuda")
    trainer = open_session(run).trainer
    trainer.update()  # kernels are loaded and chosen
    torch.cuda.synchronize()
    read = trainer._read
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._read = lambda step, metrics: (
            torch.cuda.set_sync_debug_mode("default") or read(step, metrics)
        )
        trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
