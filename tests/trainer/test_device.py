"""Which number formats a device is given, by what it computes fast; and a device that is lost."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.trainer.device import (
    device_explained,
    has_fast_bf16,
    is_device_lost,
    is_out_of_memory,
)
from dpdmd_studio.trainer.loading.decoding import decoder_dtype


@pytest.mark.parametrize(
    ("kind", "capability", "hip", "dtype"),
    [
        ("cuda", (8, 6), None, torch.bfloat16),  # Ampere
        ("cuda", (12, 0), None, torch.bfloat16),
        ("cuda", (7, 5), None, torch.float32),  # Turing
        ("cuda", (6, 1), None, torch.float32),
        ("cuda", (7, 5), "6.2", torch.bfloat16),  # AMD counts otherwise
        ("xpu", None, None, torch.bfloat16),
        ("mps", None, None, torch.float32),
        ("cpu", None, None, torch.float32),
    ],
)
def test_decoders_run_in_what_the_device_is_fast_in(kind, capability, hip, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    device = torch.device(kind)
    assert decoder_dtype(device) == dtype
    assert has_fast_bf16(device) == (dtype == torch.bfloat16)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: unspecified launch failure",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later",
        "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.",
        "CUDA error: no CUDA-capable device is detected",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unknown error",
        "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
    ],
)
def test_a_device_that_is_lost_is_no_lack_of_memory(said):
    error = RuntimeError(said)
    assert is_device_lost(error) and not is_out_of_memory(error)
    with pytest.raises(RunError) as caught:  # noqa: SIM117
        with device_explained(RunError, "Lower the batch size.", "then resume the run."):
            raise error
    text = str(caught.value)
    assert said.splitlines()[0] in text and "\n" not in text
    assert "Restart the computer, then resume the run." in text and "batch size" not in text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory, the GPU is lost in thought"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("device lost"),
    ],
)
def test_other_errors_are_no_lost_device(error):
    assert not is_device_lost(error)


def test_the_computers_memory_counts_as_well():
    with pytest.raises(RunError, match=r"ran out of memory \(MemoryError\)\. Close"):  # noqa: SIM117
        with device_explained(RunError, "Close something."):
            raise MemoryError
