"""What a run chooses by the device's free memory before it begins."""

from __future__ import annotations

import json

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.memory_fallback import fallbacks_left
from dpdmd_studio.app.estimate import arithmetic_memory
from dpdmd_studio.core.families import identify
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.memory import fit as memory_fit
from dpdmd_studio.trainer.memory.fit import FreeMemory, fit_memory, needed_memory
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from full_card import Card
from tiny_runs import distil, heard, metrics_of, new_run

GIB = 2**30


def lowest(config: DistillConfig) -> DistillConfig:
    while left := fallbacks_left(config):
        config = left[0].taken(config).validate()
    return config


def sdxl_needs(config: DistillConfig) -> float:
    class Sdxl:
        family, title, resolution = "sdxl", "SDXL", 1024

    return 1.08 * arithmetic_memory(Sdxl(), config, 7 * GIB).peak  # type: ignore[arg-type]


def test_what_fits_is_left_as_it_is():
    config = DistillConfig(batch_size=2)
    fit = fit_memory(config, lambda settings: 5 * GIB, FreeMemory(6 * GIB, 8 * GIB))
    assert (fit.config, fit.fallbacks, fit.fits) == (config, (), True)
    assert fit.text == (
        "Memory: 8.0 GB on the device, 6.0 GB free; an update needs about 5.0 GB as set."
    )


@pytest.mark.parametrize(
    ("free", "taken"),
    [
        (22, []),
        (15, ["gradient_checkpointing"]),
        (11, ["gradient_checkpointing", "offload_optimizer"]),
    ],
)
def test_sdxl_goes_down_only_as_far_as_the_card_asks(free, taken):
    fit = fit_memory(DistillConfig(batch_size=1), sdxl_needs, FreeMemory(free * GIB, free * GIB))
    assert [fallback.name for fallback in fit.fallbacks] == taken and fit.fits
    assert sdxl_needs(fit.config) <= free * GIB
    if taken:
        assert "--gradient-checkpointing" in fit.text and "Chosen" in fit.text
        reached = f"{sdxl_needs(fit.config) / GIB:.1f} GB. Chosen"
        assert reached in fit.text


def test_half_of_a_batch_is_half_of_a_processs_share():
    """With two processes half of the batch is what each has already: that would save nothing."""
    config = DistillConfig(batch_size=5, gradient_checkpointing=True)
    assert (fallbacks_left(config)[0].name, fallbacks_left(config)[0].value) == (
        "micro_batch_size",
        3,
    )
    half = fallbacks_left(config, processes=2)[0]
    assert (half.name, half.value) == ("micro_batch_size", 2)
    assert half.words.startswith("2 of 3 images at a time")


def test_halves_of_a_batch_are_told_as_one():
    def needs(config: DistillConfig) -> float:
        return (config.micro_batch_size or config.batch_size) * GIB

    fit = fit_memory(DistillConfig(batch_size=8), needs, FreeMemory(2 * GIB, None))
    assert [(fallback.name, fallback.value) for fallback in fit.fallbacks] == [
        ("micro_batch_size", 2),
    ]
    assert fit.config.micro_batch_size == 2


def test_one_image_at_a_time_comes_before_what_costs_more():
    """Checkpointing makes passes a third longer; fewer images at a time hardly do."""
    fit = fit_memory(DistillConfig(batch_size=8), sdxl_needs, FreeMemory(22 * GIB, None))
    assert [f.name for f in fit.fallbacks] == ["micro_batch_size"] and fit.fits
    fit = fit_memory(DistillConfig(batch_size=8), sdxl_needs, FreeMemory(15 * GIB, None))
    assert [f.name for f in fit.fallbacks] == ["micro_batch_size", "gradient_checkpointing"]


def test_where_nothing_fits_the_run_is_warned_and_begins_with_all_fallbacks():
    config = DistillConfig(batch_size=2, gradient_steps="all")
    fit = fit_memory(config, sdxl_needs, FreeMemory(GIB, 2 * GIB))
    assert not fit.fits and fit.config == lowest(config)
    assert "no fallback is left" in fit.text and "--resolution" in fit.text


def test_settings_only_change_towards_less_memory():
    config = DistillConfig(batch_size=4, micro_batch_size=1, gradient_checkpointing=True)
    fit = fit_memory(config, sdxl_needs, FreeMemory(GIB, None))
    assert fit.config.micro_batch_size == 1 and fit.config.gradient_checkpointing
    assert {fallback.name for fallback in fit.fallbacks}.isdisjoint({"micro_batch_size"})


def on_a_card(monkeypatch, free: int) -> None:
    monkeypatch.setattr(memory_fit, "free_memory", lambda device: free)
    monkeypatch.setattr(memory_fit, "device_memory", lambda device: free + GIB)


def test_a_run_begins_with_the_fallbacks_it_needs_and_keeps_them(files, tmp_path, monkeypatch):
    run = new_run(tmp_path, files["sd1"], batch_size=2, resolution="512x512")
    needs = needed_memory(files["sd1"], torch.float32)
    settings = DistillConfig.from_dict(run.settings()["config"])
    for _ in range(2):  # one image at a time, then checkpointing
        settings = fallbacks_left(settings)[0].taken(settings)
    on_a_card(monkeypatch, int(needs(settings)) + 1)
    with heard() as said:
        session = open_session(run)
    assert session.config.gradient_checkpointing and not session.config.offload_optimizer
    assert session.checkpoint.network.is_gradient_checkpointing
    assert any(text.startswith("Memory: ") and "Chosen" in text for text in said)
    assert run.read_json("memory.json")["since"] == {
        "micro_batch_size": 1,
        "gradient_checkpointing": 1,
    }
    assert run.settings()["config"]["gradient_checkpointing"] is False  # what was asked for

    on_a_card(monkeypatch, 100 * GIB)
    again = open_session(run)
    assert again.config.gradient_checkpointing
    assert again.trainer.fingerprint == session.trainer.fingerprint

    exact = new_run(tmp_path / "as set", files["sd1"], batch_size=2, fit_memory=False)
    on_a_card(monkeypatch, 1)
    assert open_session(exact).config.gradient_checkpointing is False
    assert not (exact.path / "memory.json").exists()


def test_numbers_in_8_bit_are_needed_in_16(files):
    path = files["sdxl"]
    numbers = sum(info.count for info in read_header(path).tensors.values())
    config = DistillConfig(dtype="bfloat16")
    found = needed_memory(path, torch.bfloat16)(config)
    assert found == 1.08 * arithmetic_memory(identify(path), config, 2 * numbers).peak


def test_a_whole_run_finishes_under_a_cap_that_its_settings_do_not_fit(files, tmp_path, home):
    settings = {"batch_size": 4, "resolution": "64x64", "steps": 2, "fake_updates": 1}
    settings |= {"num_steps": 2, "teacher_steps": 2}
    plain = new_run(tmp_path / "a", files["sd1"], **settings)
    distil(plain)
    run = new_run(tmp_path / "b", files["sd1"], **settings)
    session = open_session(run)
    with LiveBytes([]) as whole:
        session.trainer.update()
    cap = int(0.45 * whole.peak)

    trainer = open_session(run).trainer
    trainer.settings.run = None
    with Card(cap) as card, pytest.raises(torch.OutOfMemoryError):
        trainer.update()
    assert card.refused

    trainer = open_session(run).trainer
    with Card(cap) as card:
        found = [trainer.update(), trainer.update()]
    assert card.refused and card.peak <= cap
    noted = json.loads((run.path / "memory.json").read_text())
    assert noted["micro_batch_size"] == 1
    for line, other in zip(found, metrics_of(plain), strict=True):
        for name in ("diversity_loss", "matching_gradient", "fake_loss"):
            assert line[name] == pytest.approx(other[name], rel=1e-2)
