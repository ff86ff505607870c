"""The memory counted before a run against the live bytes of a real update."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.cli import estimate as cli_estimate
from dpdmd_studio.cli import main
from dpdmd_studio.cli.estimate import memory_text, parse_memory
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.families import identify
from dpdmd_studio.trainer.commands import estimate as estimate_command
from dpdmd_studio.trainer.commands import timed_updates
from dpdmd_studio.trainer.commands.estimate import estimate_memory
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.memory.update_memory import UpdateMemory, checkpoint_memory
from tiny_runs import new_run

GIB = 2**30

STORED = {
    "batch_size": 1, "resolution": "32x32", "gradient_checkpointing": True, "teacher_steps": 4,
}  # fmt: skip


def test_live_bytes_are_those_of_storages_until_they_are_freed():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes([x]) as counted:
        y = x.exp()  # kept by autograd, whether or not Python knows it
        z = y.view(10, 100).sum()
        assert counted.live == 4000 + 4000 + 4
        del y
        assert counted.live == 4000 + 4000 + 4
        z.backward()  # frees y, once its product with the gradient is made
        assert counted.live == 4000 + 4 + 4000
        del z
        x.grad = None
        assert counted.live == 4000
    assert counted.peak >= 4000 + 4000 + 4 + 4000


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


def test_what_fits_is_the_first_rung_below_the_settings(files, monkeypatch):
    def count(path, detection, config, dtype, encoders):
        pictures = config.micro_batch_size or config.batch_size
        kept = 0 if config.offload_optimizer else 2 if config.optimizer == "adamw8bit" else 8
        base = (5 if config.base_weights == "keep" else 3) - 2 * config.offload_base
        activations = pictures * (1 if config.gradient_checkpointing else 4)
        sizes = (base, 1, kept, 1, activations)
        return UpdateMemory(*(size * GIB for size in sizes))

    def estimated(memory):
        return estimate_memory(path, identify(path), config, memory, {}, lambda text: None)

    monkeypatch.setattr(estimate_command, "checkpoint_memory", count)
    path, config = files["sd1"], DistillConfig(batch_size=4, dtype="float32", resolution="64x64")
    whole = estimated(None)
    assert whole.fits is None and whole.memory is None  # a CPU has no memory of its own
    rungs = [
        "--gradient-checkpointing", "--micro-batch-size 1", "--offload-optimizer",
        "--base-weights int8", "--offload-base",
    ]  # fmt: skip
    chain = [" ".join(rungs[: count + 1]) for count in range(len(rungs))]
    assert list(whole.rows) == ["as set", "--optimizer adamw8bit", *chain]
    assert [row.peak // GIB for row in whole.rows.values()] == [31, 25, 19, 16, 8, 6, 4]
    found = estimated(18 * GIB)  # 16 and 8 % and the driver's
    assert found.fits is not None and found.fits[0] == chain[1]
    assert list(found.rows)[-1] == chain[1]  # no more is counted
    text = memory_text(found).splitlines()
    assert text[4].startswith("and --micro-batch-size 1") and f"fits with {chain[1]}" in text[-1]
    tiny = estimated(4 * GIB)
    assert tiny.fits is None and "neither these settings nor any preset" in memory_text(tiny)
    monkeypatch.setattr(estimate_command, "free_memory", lambda device: 18 * GIB)
    at_hand = estimated(None)  # free memory has the driver's share taken off already
    assert at_hand.fits is not None and at_hand.fits[0] == chain[1] and not at_hand.asked
    assert "The 18.0 GB that are free here: fits with" in memory_text(at_hand)


def test_sizes_of_cards_are_understood():
    assert parse_memory("12gb") == parse_memory("12 GiB") == parse_memory("12") == 12 * 2**30
    for wrong in ("much", "-3gb", "0", "12tb"):
        with pytest.raises(SettingsError, match="12gb"):
            parse_memory(wrong)


def test_a_size_that_a_run_would_refuse_is_refused(files, capsys):
    assert main(["estimate", str(files["sd1"]), "--resolution", "33x33"]) == 2
    assert "resolution 33x33 does not suit SD 1.x" in capsys.readouterr().err


def test_the_time_of_a_run_is_measured_and_nothing_is_left(files, home, capsys, monkeypatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(timed_updates, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(cli_estimate, "memory_text", lambda found: "")
    size = ("--resolution", "64x64", "--batch-size", "1", "--steps", "3", "--device", "cpu")
    monkeypatch.setattr(estimate_command, "estimate_memory", lambda *_: SimpleNamespace(dtype="x"))
    assert main(["estimate", str(files["sd1"]), *size, "--measure"]) == 0
    assert "about 21 s for 3 updates of 7.00 s, measured" in capsys.readouterr().out
    assert not (home / "runs").exists()
