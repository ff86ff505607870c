"""The dropdown entries of core's KSampler, on a stand-in for ComfyUI."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import comfy_host
import pytest
import torch
from comfy_host import Model
from dpdmd_studio.comfy_nodes.sampling import few_step as dropdown
from dpdmd_studio.comfy_nodes.sampling.few_step import few_step_sampler
from dpdmd_studio.core.diffusion.sampler import sample_few_step
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions
from dpdmd_studio.core.errors import LoraError, RecipeError
from dpdmd_studio.core.recipe.few_step import default_recipe, respaced, schedule_of
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe

SD1 = default_recipe("sd1", "eps")
SDXL_V = default_recipe("sdxl", "v", zero_terminal_snr=True)
SD3 = default_recipe("sd3", "flow")


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    return comfy_host.install(monkeypatch, tmp_path)


class Denoiser:
    """What ComfyUI hands to samplers; notes the levels that it is called at."""

    def __init__(self, model: Model | None) -> None:
        self.inner_model = SimpleNamespace(model_patcher=model)
        self.levels: list[float] = []

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        self.levels.append(float(sigma[0]))
        return torch.tanh(x) * 0.5


def sampled(model: Model | None, sigmas: Any, **extra: Any) -> tuple[torch.Tensor, list[float]]:
    """(the sample, levels of the network's evaluations)."""
    denoiser = Denoiser(model)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    levels = torch.as_tensor(sigmas, dtype=torch.float32)
    return few_step_sampler(denoiser, x, levels, extra, None, True), denoiser.levels


# Being there


def test_registering_again_leaves_one_entry_with_the_newest_function(comfy, monkeypatch):
    held = (comfy.SAMPLER_NAMES, comfy.KSAMPLER_NAMES, comfy.SCHEDULER_NAMES)
    dropdown.register()

    def newer(*_: object) -> None: ...

    monkeypatch.setattr(dropdown, "few_step_sampler", newer)
    monkeypatch.setattr(dropdown, "schedule", newer)
    dropdown.register()
    now = (comfy.SAMPLER_NAMES, comfy.KSAMPLER_NAMES, comfy.SCHEDULER_NAMES)
    assert all(a is b for a, b in zip(held, now, strict=True))
    assert [names.count("dp_dmd") for names in now] == [1, 1, 1]
    assert comfy.SCHEDULER_HANDLERS["dp_dmd"] == (newer, True)
    from comfy.k_diffusion import sampling  # type: ignore[import-not-found]

    assert sampling.sample_dp_dmd is newer


def test_entries_of_other_packs_stay(comfy):
    comfy.SAMPLER_NAMES.append("res_2s")
    comfy.SCHEDULER_NAMES.append("bong_tangent")
    dropdown.register()
    assert comfy.SAMPLER_NAMES == ["euler", "lcm", "ddim", "res_2s", "dp_dmd"]
    assert comfy.SCHEDULER_NAMES == ["simple", "bong_tangent", "dp_dmd"]


# The scheduler


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8, 1000])
@pytest.mark.parametrize("recipe", [SD1, SDXL_V, SD3, default_recipe("sd3", "flow", shift=1.0)])
def test_the_schedule_is_our_grid_at_any_number_of_steps(recipe, steps):
    found = dropdown.schedule(comfy_host.sampling(recipe), steps)
    expected = Levels.at_positions(schedule_of(recipe), few_step_positions(steps)).sigmas
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found[-1] == 0 and len(found) == steps + 1


def test_a_table_of_another_length_is_walked_evenly():
    """Flux has ten thousand levels; others may have a hundred."""
    for count, expected in ((10_000, [10_000, 7500, 5000, 2500, 0]), (100, [100, 75, 50, 25, 0])):
        table = SimpleNamespace(sigmas=torch.arange(1, count + 1, dtype=torch.float64))
        assert dropdown.schedule(table, 4).tolist() == expected


# The sampler


@pytest.mark.parametrize("recipe", [SD1, SDXL_V, SD3])
@pytest.mark.parametrize("extra", [{}, {"seed": 3}])
def test_a_whole_trajectory_is_the_recipe(comfy, recipe, extra):
    found, levels = sampled(
        Model(recipe).with_recipe(recipe), dropdown.schedule(comfy_host.sampling(recipe), 4)
    )
    assert levels == pytest.approx(recipe.sigmas[:-1], rel=1e-4)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = sample_few_step(Denoiser(None), x, torch.tensor(recipe.sigmas))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_habit_of_the_user_is_put_right_and_logged(comfy, caplog):
    """Four steps of "normal" have other levels; the recipe's are evaluated."""
    caplog.set_level(logging.INFO, logger="dpdmd_studio.comfyui")
    _, levels = sampled(Model(SD3).with_recipe(SD3), [1, 0.86, 0.6, 0.009, 0])
    assert levels == pytest.approx([1, 0.9, 0.75, 0.5])
    assert "dp_dmd samples at the LoRA's levels: 1 0.9 0.75 0.5 0" in caplog.text
    caplog.clear()
    sampled(Model(SD3).with_recipe(SD3), SD3.sigmas)
    assert caplog.text == ""


def test_other_counts_follow_the_recipes_spacing(comfy):
    recipe = dataclasses.replace(
        SD3, sigmas=(1.0, 0.9, 0.6, 0.3, 0.0), timesteps=(1000.0, 900.0, 600.0, 300.0)
    )
    _, levels = sampled(Model(SD3).with_recipe(recipe), torch.linspace(1, 0, 9))
    assert levels == pytest.approx(respaced(recipe, 8)[:-1].tolist())


def test_image_to_image_starts_where_the_host_noised_to_and_goes_on_at_trained_levels(comfy):
    """KSampler takes the last five of nine levels for four steps at denoise 0.5."""
    tail = dropdown.schedule(comfy_host.sampling(SD1), 8)[-5:]
    _, levels = sampled(Model(SD1).with_recipe(SD1), tail)
    assert levels == pytest.approx([float(tail[0]), SD1.sigmas[3]], rel=1e-4)
    _, levels = sampled(Model(SD3).with_recipe(SD3), [0.8, 0.7, 0.6, 0.2, 0])
    assert levels == pytest.approx([0.8, 0.75, 0.5])


def test_zero_terminal_snr_on_one_side_alone_costs_no_evaluation(comfy, caplog):
    """The host's first level lies far above the recipe's own, or below it."""
    plain = default_recipe("sdxl", "v")
    for model, recipe in ((SDXL_V, plain), (plain, SDXL_V)):
        host = dropdown.schedule(comfy_host.sampling(model), 4)
        _, levels = sampled(Model(model).with_recipe(recipe), host)
        assert levels == pytest.approx([model.sigmas[0], *recipe.sigmas[1:-1]], rel=1e-4)
        eight = dropdown.schedule(comfy_host.sampling(model), 8)
        assert len(sampled(Model(model).with_recipe(recipe), eight)[1]) in (8, 4)
    assert "trained without zero terminal SNR" in caplog.text


def test_flipped_levels_are_eulers_method_backwards(comfy):
    up = [0.0001, *sorted(SD3.sigmas)[1:]]
    for model in (Model(SD3), Model(SD3).with_recipe(dataclasses.replace(SD3, solver="sde"))):
        found, levels = sampled(model, up)
        assert levels == pytest.approx(up[:-1])
        x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
        expected = comfy_host.sample_euler(Denoiser(None), x, torch.tensor(up))
        assert torch.equal(found, expected)


def test_the_console_has_a_bar_of_as_many_steps_as_are_evaluated(comfy):
    seen: list[int] = []
    for disable in (True, False):
        few_step_sampler(
            Denoiser(Model(SD3).with_recipe(SD3)), torch.zeros(1, 4, 2, 2),
            torch.tensor([1, 0.8, 0.3, 0]), {}, lambda step: seen.append(step["i"]), disable,
        )  # fmt: skip
        bar = comfy_host.Bar.last
        assert (bar.total, bar.done, bar.closed, bar.disable) == (3, 3, True, disable)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_two_stages_of_ksampler_advanced_are_one_trajectory(comfy):
    model = Model(SD3).with_recipe(SD3)
    whole, _ = sampled(model, SD3.sigmas)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    first, second = Denoiser(model), Denoiser(model)
    middle = few_step_sampler(first, x, torch.tensor(SD3.sigmas[:3]))
    end = few_step_sampler(second, middle, torch.tensor(SD3.sigmas[2:]))
    assert torch.equal(end, whole)
    assert first.levels + second.levels == pytest.approx(SD3.sigmas[:-1])
    part = Denoiser(model)
    few_step_sampler(part, x, torch.tensor([1, 0.97, 0.92, 0.8]))  # ends above 0, off the grid
    assert part.levels == pytest.approx([1, 0.9])


def test_without_a_recipe_the_hosts_levels_are_sampled(comfy):
    levels = [1, 0.8, 0.3, 0]
    for model in (None, Model(SD3), Model(SD3).with_core_lora({"ss_output_name": "x"})):
        found, seen = sampled(model, levels)
        assert seen == pytest.approx(levels[:-1])
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, sample_few_step(Denoiser(None), x, torch.tensor(levels)))


def test_a_recipe_that_does_not_fit_or_cannot_be_read_is_refused(comfy):
    with pytest.raises(LoraError, match=r"made for SD3, but the model is SD 1\.x"):
        sampled(Model(SD1).with_recipe(SD3), SD1.sigmas)
    with pytest.raises(LoraError, match="predicts v"):
        sampled(Model(SDXL_V).with_recipe(default_recipe("sdxl", "eps")), SD1.sigmas)
    newer = Model(SD1).with_core_lora({METADATA_KEY: '{"version": 3}'})
    with pytest.raises(RecipeError, match="version 3"):
        sampled(newer, SD1.sigmas)


def test_a_renoising_recipe_draws_from_the_seed(comfy):
    recipe: Recipe = dataclasses.replace(SD3, solver="sde", plain_host="")
    model = Model(SD3).with_recipe(recipe)
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor(SD3.sigmas)
    found, again, other = (
        few_step_sampler(Denoiser(model), x, sigmas, {"seed": seed}) for seed in (5, 5, 6)
    )
    expected = sample_few_step(
        Denoiser(None), x, sigmas, solver="sde", flow=True,
        noise_sampler=comfy_host.default_noise_sampler(x, 5),
    )  # fmt: skip
    assert torch.equal(found, expected) and torch.equal(found, again)
    assert not torch.equal(found, other)
