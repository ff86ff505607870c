"""The estimate before a run: what it rests on, and what it refuses to guess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import PRESETS, SIZES
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.estimate import (
    ALLOCATOR_SHARE,
    DRIVER_BYTES,
    GIB,
    SPEED_SETTINGS,
    arithmetic_memory,
    duration,
    estimate,
)
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.core.families import Detection, family, identify

TEACHER = Path(__file__).parents[2] / "trainer" / "assets" / "emoji-sd3.safetensors"
FULL_SIZE = {"sd1": 2_064_293_568, "sdxl": 6_869_719_733, "sd3": 5_284_687_127,
             "anima": 4_182_137_856, "zimage": 12_309_817_472,
             "SD3.5 large": 16_292_561_536}  # fmt: skip
CONFIG = DistillConfig(steps=1000, batch_size=2, num_anchored_steps=1, gradient_steps="random")


def detected(name: str) -> Detection:
    """Of a family, or of a model of another size."""
    flow = name not in ("sd1", "sdxl")
    return Detection(
        family="sd3" if name in SIZES else name,
        title=name,
        prediction="flow" if flow else "eps",
        latent_channels=16 if flow else 4,
        denoiser_prefix="",
        resolution=512 if name == "sd1" else 1024,
        resolution_multiple=64,
    )


def earlier_run(folder: Path, config: DistillConfig, seconds: list[float], **more) -> RunDirectory:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(TEACHER)), config=config, output="/o.safetensors"
    )
    run = RunDirectory.create(folder, request.to_dict(), ["a cat"])
    for step, value in enumerate(seconds, 1):
        run.append_metrics({"step": step, "seconds": value, **more})
    return run


def of_teacher(config: DistillConfig, *runs: RunDirectory):
    return estimate(identify(TEACHER), config, TEACHER.stat().st_size, runs)


def gib(family: str, **settings) -> float:
    config = DistillConfig.from_dict({"batch_size": 1} | settings)
    return arithmetic_memory(detected(family), config, FULL_SIZE[family]).peak / GIB


def test_weights_and_adapters_are_exact():
    """Twice the rank adds both with their moments, a gradient, and a copy in 16 bit."""
    per_rank = family("sdxl").cost.per_rank["full"]
    found = gib("sdxl", student_rank=128, fake_rank=128) - gib("sdxl")
    assert found * GIB == pytest.approx(4 * per_rank * 64 * (2 * 3 + 1.5))
    found = gib("sdxl", student_rank=128, fake_rank=128, gradient_checkpointing=True)
    found -= gib("sdxl", gradient_checkpointing=True)  # copies of one block alone
    assert found * GIB == pytest.approx(4 * per_rank * 64 * (2 * 3 + 1))
    assert gib("sd1", dtype="float32") > 1.9 * gib("sd1") - 1.9 * 2.2


def test_offloaded_moments_are_there_in_a_step_when_activations_are_not():
    step = gib("sdxl", gradient_checkpointing=True, offload_optimizer=True)
    one_role = 4 * family("sdxl").cost.per_rank["full"] * 64
    base = 2 * family("sdxl").cost.parameters
    assert step * GIB == pytest.approx(base + one_role * (2 + 2 + 1))  # adapters, moments, gradient
    many = gib("sdxl", gradient_checkpointing=True, offload_optimizer=True, batch_size=4)
    more = gib("sdxl", gradient_checkpointing=True, batch_size=4)
    assert more - many == pytest.approx(4 * one_role / GIB)  # a pass is the worst moment there


def test_activations_grow_with_pixels_batch_and_graphs():
    one = gib("sd1")
    more = gib("sd1", batch_size=2) - one
    assert more > 0.5
    pixels = gib("sd1", resolution="1024x512") - one
    assert pixels < more < 1.01 * pixels  # an image more is a text more, too
    assert gib("sd1", resolution="64x64,1024x512") - one == pixels
    assert gib("sd1", gradient_steps="all") - one == pytest.approx(2 * more)  # steps 2 to 4
    assert gib("sd1", gradient_steps="all", objective="dmd") - one == pytest.approx(3 * more)
    assert gib("sd1", batch_size=2, gradient_checkpointing=True) < one + more - 1


def test_a_stored_base_takes_what_it_is_stored_in():
    whole = gib("sdxl", gradient_checkpointing=True)
    bits = {kind: gib("sdxl", gradient_checkpointing=True, base_weights=kind)
            for kind in ("int8", "nf4")}  # fmt: skip
    assert whole - bits["int8"] == pytest.approx(2.567e9 * 0.98 / GIB, rel=0.02)
    assert bits["int8"] > bits["nf4"] > whole - 2 * (whole - bits["int8"])
    assert gib("sdxl", gradient_checkpointing=True, offload_base=True) < bits["nf4"]


def test_presets_fit_their_cards():
    for kind, presets in (PRESETS | SIZES).items():
        for name, settings in presets.items():
            needed = (1 + ALLOCATOR_SHARE) * gib(kind, **settings) + DRIVER_BYTES / GIB
            assert settings["batch_size"] >= 4 and needed < float(name.removesuffix("gb")), (
                kind,
                name,
            )


def test_the_embedded_teacher_takes_next_to_nothing():
    found = of_teacher(CONFIG)
    assert found.memory_bytes is not None and found.memory_bytes < GIB / 4
    assert "less than 1 GB by arithmetic" in found.text


def test_without_an_earlier_run_time_is_not_guessed():
    found = of_teacher(CONFIG)
    assert found.seconds is None
    assert "not known until the first updates" in found.text


def test_time_is_the_median_of_an_earlier_run_times_the_updates(tmp_path):
    run = earlier_run(tmp_path / "a", CONFIG, [60.0, 2.0, 2.0, 2.5, 2.0, 9.0])
    found = of_teacher(replace(CONFIG, steps=30, seed=9, student_lr=1e-3), run)
    assert found.seconds == pytest.approx(2.25 * 30)
    assert "68 s for 30 updates" in found.text


@pytest.mark.parametrize("name", [*SPEED_SETTINGS, "resolution"])
def test_a_run_of_other_settings_says_nothing(tmp_path, name):
    other = {
        "num_steps": 8, "teacher_steps": 56, "anchor_step": 5, "anchor_target": "denoised",
        "num_anchored_steps": 2, "objective": "dmd", "gradient_steps": "all", "batch_size": 4,
        "fake_updates": 3, "share_rollouts": False, "lora_layers": "attention", "device": "cpu",
        "dtype": "float16", "attention": "sdpa", "gradient_checkpointing": True,
        "resolution": "32x32", "micro_batch_size": 2, "base_weights": "int8",
        "offload_base": True, "offload_optimizer": True,
        "optimizer": "adamw8bit",
    }[name]  # fmt: skip
    run = earlier_run(tmp_path / "a", replace(CONFIG, **{name: other}), [2.0] * 9)
    assert of_teacher(CONFIG, run).seconds is None


def test_a_run_in_several_processes_says_nothing(tmp_path):
    run = earlier_run(tmp_path / "a", CONFIG, [2.0] * 9, processes=2)
    assert of_teacher(CONFIG, run).seconds is None


def test_a_resolution_that_is_the_models_own_may_be_named(tmp_path):
    own = identify(TEACHER).resolution
    run = earlier_run(tmp_path / "a", replace(CONFIG, resolution=f"{own}x{own}"), [2.0] * 9)
    assert of_teacher(CONFIG, run).seconds == pytest.approx(2000)


def test_the_newest_fitting_run_counts_and_damaged_ones_are_passed_over(tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "settings.json").write_text('{"version": 1, "model": 3}')
    short = earlier_run(tmp_path / "short", CONFIG, [1.0] * 4)
    gone = earlier_run(tmp_path / "gone", CONFIG, [1.0] * 9)
    gone.write_json("settings.json", {"model": {"checkpoint": "/none"}, "config": {}})
    runs = [
        RunDirectory(tmp_path / "none"), RunDirectory(damaged), short, gone,
        earlier_run(tmp_path / "new", CONFIG, [3.0] * 9),
        earlier_run(tmp_path / "old", CONFIG, [5.0] * 9),
    ]  # fmt: skip
    assert of_teacher(CONFIG, *runs).seconds == pytest.approx(3000)


def test_the_small_teachers_speed_says_nothing_of_a_real_model(tmp_path):
    run = earlier_run(tmp_path / "a", CONFIG, [2.0] * 9)
    assert estimate(identify(TEACHER), CONFIG, FULL_SIZE["sd3"], [run]).seconds is None


def test_memory_of_an_earlier_run_on_a_card_is_taken_in_place_of_arithmetic(tmp_path):
    card = {"memory_bytes": 5.5 * GIB, "device_memory_bytes": 24.0 * GIB}
    run = earlier_run(tmp_path / "a", CONFIG, [2.0] * 9, **card)
    found = of_teacher(CONFIG, run)
    assert found.memory_bytes == round(5.5 * GIB)
    assert "about 5.5 GB, measured in an earlier run" in found.text
    other_rank = of_teacher(replace(CONFIG, student_rank=8), run)
    assert "by arithmetic" in other_rank.text and other_rank.seconds is not None
    on_cpu = earlier_run(tmp_path / "b", CONFIG, [2.0] * 9, memory_bytes=9e9)
    assert "by arithmetic" in of_teacher(CONFIG, on_cpu).text


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
