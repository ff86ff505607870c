"""Which number formats a device is given, by what it computes fast."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.trainer.device import has_fast_bf16
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
