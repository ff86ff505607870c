"""The count against live bytes of a real update, and the arithmetic against the count."""

from __future__ import annotations

import pytest
import torch
from count_memory import (
    GIB,
    LAYOUTS,
    asked,
    config_of,
    count,
    counted_rows,
    model_in,
    published_model,
    reckoned,
)
from count_stages import counted_stages, decoding, presets_of
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.estimate import DECODING_BYTES, DRIVER_BYTES, memory_of_all_stages
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from tiny_runs import new_run
from torch._subclasses.fake_tensor import FakeTensorMode

# How far the arithmetic lies above the count at most. The second is for passes whose gradients grow
# while activations go: plain DMD's, and a fake score's of a larger rank than the student.
ABOVE, ABOVE_GROWING = 0.015, 0.065
STORED = {
    "batch_size": 1, "resolution": "32x32", "gradient_checkpointing": True,
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
        STORED | {"base_weights": "int8", "offload_base": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_counted_memory_is_within_a_tenth_of_the_measured(changed, files, tmp_path):
    settings = {
        "batch_size": 4,
        "resolution": "64x64",
        "num_steps": 2,
        "teacher_steps": 2,
    } | changed
    run = new_run(tmp_path, files["sd1"], ema_decay=0.0, fake_updates=1, **settings)
    session = open_session(run)
    trainer = session.trainer
    trainer.update()
    resident = [*session.call.network.parameters(), *session.call.network.buffers()]
    for optimizer in trainer.optimizers.values():
        resident += [value for state in optimizer.state.values() for value in state.values()]
    with LiveBytes(resident) as measured:
        trainer.update()
    model = model_in(files["sd1"], session.config, torch.float32)
    counted = count(model, session.config)
    assert counted.peak == pytest.approx(measured.peak, rel=0.1)
    assert counted.moments == 2 * counted.adapters


def test_a_stored_base_is_counted_as_it_is_stored(files):
    def base(**settings):
        small = {"student_rank": 4, "fake_rank": 4, "resolution": "32x32", "num_steps": 2}
        config = DistillConfig.from_dict(small | settings)
        return count(model_in(files["sd3"], config, torch.bfloat16), config).base

    whole, int8, nf4 = base(), base(base_weights="int8"), base(base_weights="nf4")
    # of 2 bytes a weight there remain 1 or 4.5 / 8; int8's scale is a channel's, 64 weights or more
    assert 0.4 * whole < int8 < 0.7 * whole
    assert 1.4375 < (whole - nf4) / (whole - int8) < 1.4375 / (1 - 4 / 64)
    offloaded, both = base(offload_base=True), base(offload_base=True, base_weights="int8")
    assert both < offloaded < 0.5 * whole


@pytest.mark.parametrize(
    ("name", "config", "counted"),
    [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(counted_rows())],
)
def test_the_arithmetic_is_never_below_the_count_and_not_far_above_it(name, config, counted):
    found = reckoned(name, config)
    assert found.adapters == counted.adapters
    growing = config.objective == "dmd" or config.fake_rank > config.student_rank
    above = ABOVE_GROWING if growing else ABOVE
    assert counted.peak <= found.peak <= (1 + above) * counted.peak


def test_the_kept_counts_are_those_of_todays_update():
    """One of them is counted again: a change of the update's memory has to be fitted anew."""
    name, settings = "sd1", {"lora_layers": "attention", "student_rank": 16, "fake_rank": 16}
    config = config_of(settings)
    (kept,) = [row for family, c, row in counted_rows() if (family, c) == (name, config)]
    assert count(published_model(name, config), config) == kept


@pytest.mark.parametrize(
    ("name", "memory", "counted"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in counted_stages()],
)
def test_an_estimate_is_of_the_stage_that_needs_most(name, memory, counted):
    """And a preset's card holds it, with the driver's own and a twentieth to spare."""
    config = DistillConfig.from_dict(presets_of(name)[memory])
    highest = max(counted.values())
    assert 0.999 * highest <= memory_of_all_stages(*asked(name, config)) <= 1.08 * highest
    assert highest + DRIVER_BYTES < 0.95 * float(memory.removesuffix("gb")) * GIB


@pytest.mark.parametrize(("name", "channels"), [("sd1", 4), ("sd3", 16), ("anima", 16)])
def test_what_decoding_takes_is_counted_again(name, channels):
    found = decoding(name, channels, FakeTensorMode(allow_non_fake_inputs=True))
    assert found <= DECODING_BYTES <= 1.02 * found


def test_every_preset_was_counted():
    counted = {(name, memory) for name, memory, _ in counted_stages()}
    assert counted == {(name, memory) for name in LAYOUTS for memory in presets_of(name)}
