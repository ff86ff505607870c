"""Which number format is chosen by trying how fast it is."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.trainer import device


@pytest.mark.parametrize(
    ("kind", "seconds", "wanted"),
    [
        ("cpu", {torch.bfloat16: 1.0, torch.float32: 6.0}, "bfloat16"),
        ("cpu", {torch.bfloat16: 1.0, torch.float32: 1.5}, "auto"),
        ("cpu", {torch.bfloat16: 5.0, torch.float32: 1.0}, "auto"),
        ("cuda", {}, "auto"),  # no trial: it has a format of its own
    ],
)
def test_bfloat16_is_taken_on_a_cpu_only_where_it_is_twice_as_fast(
    monkeypatch, kind, seconds, wanted
):
    monkeypatch.setattr(device, "_seconds", seconds.__getitem__)
    assert device.faster_dtype(torch.device(kind)) == wanted


def test_the_trial_takes_both_formats():
    assert device._seconds(torch.float32) > 0 < device._seconds(torch.bfloat16)
