"""The memory counted before a run against the live bytes of a real update."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.families import identify
from dpdmd_studio.trainer.cli_estimate import parse_memory
from dpdmd_studio.trainer.config import DistillConfig
from dpdmd_studio.trainer.engine.estimate_command import estimate_memory
from dpdmd_studio.trainer.engine.live_bytes import LiveBytes
from dpdmd_studio.trainer.engine.session import open_session
from dpdmd_studio.trainer.engine.update_memory import checkpoint_memory
from tiny_runs import new_run

STORED = {
    "batch_size": 1, "resolution": "32x32", "gradient_checkpointing": True, "teacher_steps": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True},
        STORED,
        STORED | {"base_weights": "int8"},
        STORED | {"base_weights": "fp8", "offload_base": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_counted_memory_is_within_a_tenth_of_the_measured(changed, files, tmp_path):
    settings = {"batch_size": 4, "resolution": "64x64"} | changed
    run = new_run(tmp_path, files["sd1"], ema_decay=0.0, fake_updates=1, **settings)
    session = open_session(run, lambda text: None)
    trainer = session.trainer
    trainer.update()
    resident = [*session.call.network.parameters(), *session.call.network.buffers()]
    for optimizer in trainer.optimizers.values():
        resident += [value for state in optimizer.state.values() for value in state.values()]
    with LiveBytes(resident) as measured:
        trainer.update()
    path = files["sd1"]
    counted = checkpoint_memory(path, identify(path), session.config, torch.float32)
    assert counted.peak == pytest.approx(measured.peak, rel=0.1)
    assert counted.moments == 2 * counted.adapters


def test_a_stored_base_is_counted_as_it_is_stored(files):
    path = files["sd3"]

    def base(**settings):
        config = DistillConfig(student_rank=4, fake_rank=4, resolution="32x32", **settings)
        return checkpoint_memory(path, identify(path), config, torch.bfloat16).base

    whole, int8, nf4 = base(), base(base_weights="int8"), base(base_weights="nf4")
    # of 2 bytes a weight there remain 1 or 4.5 / 8; int8's scale is a channel's, 64 weights or more
    assert 0.4 * whole < int8 < 0.7 * whole
    assert 1.4375 < (whole - nf4) / (whole - int8) < 1.4375 / (1 - 4 / 64)
    offloaded, both = base(offload_base=True), base(offload_base=True, base_weights="int8")
    assert both < offloaded < 0.5 * whole


def test_what_fits_is_the_first_rung_below_the_settings(files):
    path, config = files["sd1"], DistillConfig(batch_size=4, dtype="float32", resolution="64x64")
    whole = estimate_memory(path, identify(path), config, None, {}, lambda text: None)
    assert whole.fits is None and whole.rows.keys() == {
        "gradient checkpointing off", "gradient checkpointing on",
    }  # fmt: skip
    off, on = (row.peak for row in whole.rows.values())
    assert on < off
    between = round((on + off) / 2 * 1.08 + 0.6 * 2**30)
    found = estimate_memory(path, identify(path), config, between, {}, lambda text: None)
    assert found.fits is not None and found.fits[0] == "gradient checkpointing on"
    tiny = estimate_memory(path, identify(path), config, 2**20, {}, lambda text: None)
    assert tiny.fits is None


def test_sizes_of_cards_are_understood():
    assert parse_memory("12gb") == parse_memory("12 GiB") == parse_memory("12") == 12 * 2**30
    for wrong in ("much", "-3gb", "0", "12tb"):
        with pytest.raises(SettingsError, match="12gb"):
            parse_memory(wrong)
