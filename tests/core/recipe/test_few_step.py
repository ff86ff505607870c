"""Plans of few-step sampling: grids of each family, other counts, image to image, and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.recipe.few_step import (
    default_recipe,
    plan,
    respaced,
    schedule_of,
    trained_levels,
)
from dpdmd_studio.core.recipe.recipe import Recipe, is_plain_grid

SD1 = default_recipe("sd1", "eps")
SDXL_V = default_recipe("sdxl", "v", zero_terminal_snr=True)
SD3 = default_recipe("sd3", "flow")
# The grid of diffusers' "linspace": positions 999, 666, 333, 0. No host's Simple schedule has it.
UNEVEN = dataclasses.replace(
    SD3,
    sigmas=(1.0, 0.9, 0.6, 0.3, 0.0),
    timesteps=(1000.0, 900.0, 600.0, 300.0),
    plain_host="",
)


def levels(sigmas: torch.Tensor) -> list[float]:
    return pytest.approx(sigmas.tolist(), rel=2e-4)  # type: ignore[return-value]


def test_default_grids_are_those_of_the_training():
    assert SD1.timesteps == pytest.approx((999, 749, 499, 249), abs=1e-3)
    assert SD1.sigmas == pytest.approx((14.6146, 4.0817, 1.6129, 0.6932, 0), rel=1e-3)
    assert SDXL_V.sigmas[0] == pytest.approx(4518.757, rel=1e-3) and SDXL_V.zero_terminal_snr
    assert SD3.sigmas == pytest.approx((1, 0.9, 0.75, 0.5, 0)) and SD3.shift == 3.0
    assert default_recipe("sd3", "flow", shift=1.0).sigmas == pytest.approx((1, 0.75, 0.5, 0.25, 0))
    assert default_recipe("sd1", "eps", num_steps=1).timesteps == pytest.approx((999,))
    for recipe in (SD1, SDXL_V, SD3):
        assert is_plain_grid(recipe) and recipe.objective == "unknown"


def test_the_trained_plan_is_the_recipe_itself_without_a_word():
    found = plan(dataclasses.replace(SD3, guidance_scale=1.5, solver="sde"))
    assert found.sigmas.tolist() == pytest.approx(SD3.sigmas)
    assert (found.guidance_scale, found.solver, found.note) == (1.5, "sde", "")
    assert found.num_steps == 4 and plan(SD3, steps=4).note == ""
    line = "4 steps, CFG 1.5, re-noising, noise levels 1 0.9 0.75 0.5 0"
    assert found.describe() == line
    noted = dataclasses.replace(found, notes=("No recipe.", "Twice."))
    assert noted.describe() == f"{line}\nNo recipe.\nTwice."


@pytest.mark.parametrize(
    ("recipe", "steps", "expected"),
    [
        (SD3, 1, (1, 0)),
        (SD3, 2, (1, 0.75, 0)),
        (SD3, 8, (1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0)),
        (SD1, 2, (14.6146, 1.6129, 0)),
        (SD1, 8, (14.6146, 7.2974, 4.0817, 2.4925, 1.6129, 1.069, 0.6932, 0.3977, 0)),
        (UNEVEN, 8, (1, 0.9545, 0.9, 0.78, 0.6, 0.4714, 0.3, 0.1667, 0)),
    ],
)
def test_other_counts_keep_the_spacing_and_say_so(recipe, steps, expected):
    found = plan(recipe, steps=steps)
    assert found.sigmas.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-6)
    advice = "Fewer steps lose" if steps < 4 else "Up to twice as many"
    assert f"trained for 4 steps; {steps} follow the same spacing" in found.note
    assert advice in found.note
    assert len(found.sigmas) == steps + 1


def test_more_than_twice_as_many_steps_are_said_to_be_untried():
    assert "More than twice as many were never tried." in plan(SD1, steps=9).note


@pytest.mark.parametrize("recipe", [SD1, SDXL_V, SD3, UNEVEN])
def test_doubling_the_steps_keeps_every_trained_level(recipe):
    assert respaced(recipe, 8)[::2].tolist() == pytest.approx(recipe.sigmas, rel=1e-4)
    assert respaced(recipe, 4).tolist() == pytest.approx(recipe.sigmas, rel=1e-4)
    more = respaced(recipe, 128)
    assert (more.diff() < 0).all() and more[-1] == 0


def test_respaced_levels_lie_evenly_between_in_position():
    """Eight steps of an uneven flow grid: halfway between positions, not between levels."""
    own = [3 * u / (1 + 2 * u) for u in ((1 + 0.75) / 2, (0.75 + 1 / 3) / 2)]
    assert respaced(UNEVEN, 8)[[1, 3]].tolist() == pytest.approx(own, rel=1e-4)
    vp = respaced(dataclasses.replace(SD1, timesteps=(999.0, 600.0, 300.0, 100.0)), 8)
    expected = schedule_of(SD1).sigma_at(torch.tensor([799.5, 450.0, 200.0, 49.5]))
    assert vp[1::2].tolist() == levels(expected)


@pytest.mark.parametrize("steps", [-1, 129])
def test_impossible_counts_are_refused(steps):
    with pytest.raises(SettingsError, match=rf"{steps} steps .* expected 1 to 128, or 0 .* own 4"):
        plan(SD3, steps=steps)


def test_image_to_image_starts_at_a_trained_level_and_says_which():
    half = plan(SD3, denoise=0.55)
    assert half.sigmas.tolist() == pytest.approx([0.75, 0.5, 0])
    assert "Denoise 0.55 starts at the nearest trained level: 2 of 4 steps, which is 0.5." in (
        half.note
    )
    assert half.sigmas.tolist() == list(plan(SD3).sigmas[2:])
    both = plan(SD3, steps=8, denoise=0.5)
    assert both.sigmas.tolist() == pytest.approx([0.75, 0.642857, 0.5, 0.3, 0], rel=1e-4)
    assert "8 follow the same spacing" in both.note and "4 of 8 steps" in both.note


def test_exact_strength_starts_where_it_is_asked_and_goes_on_at_trained_levels():
    """Denoise 0.6 of a flow with shift 3: position 599, level 1.8 / 2.2."""
    found = plan(SD3, denoise=0.6, exact=True)
    assert found.sigmas.tolist() == pytest.approx([1.8 / 2.2, 0.75, 0.5, 0], rel=1e-4)
    assert found.note == ""
    vp = plan(SD1, denoise=0.6, exact=True)
    start = float(schedule_of(SD1).sigma_at(torch.tensor([599.0])))
    assert vp.sigmas.tolist() == pytest.approx([start, *SD1.sigmas[2:]], rel=1e-4)


@pytest.mark.parametrize("denoise", [0.0, -0.5, 1.01, float("nan")])
@pytest.mark.parametrize("exact", [False, True])
def test_impossible_strengths_are_refused(denoise, exact):
    with pytest.raises(SettingsError, match="expected more than 0 and at most 1"):
        plan(SD3, denoise=denoise, exact=exact)


# Levels that a host brings along


def test_a_hosts_whole_trajectory_becomes_the_recipes():
    host = torch.tensor([1, 0.8, 0.6, 0.3, 0])
    assert trained_levels(SD3, host).tolist() == pytest.approx(SD3.sigmas)
    host = torch.tensor([1, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.2, 0])
    assert trained_levels(SD3, host).tolist() == levels(respaced(SD3, 8))
    assert trained_levels(SD3, torch.tensor([1.0, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ([0.8, 0.4, 0], [0.8, 0.75, 0.5, 0]),
        ([0.75, 0.3, 0], [0.75, 0.5, 0]),
        ([0.75 + 1e-5, 0.3, 0], [0.75, 0.5, 0]),
        ([0.75 - 1e-5, 0.3, 0], [0.75, 0.5, 0]),
        ([0.45, 0.2, 0.1, 0], [0.45, 0]),
        ([1, 0.9, 0.75], [1, 0.9, 0.75]),
        ([1, 0.95, 0.9, 0.8, 0.6], [1, 0.9, 0.75, 0.6]),
        ([0.6, 0.5, 0.4], [0.6, 0.5, 0.4]),
        ([0.6], [0.6]),
        ([], []),
    ],
)
def test_the_first_and_last_level_stay_and_those_between_are_trained(host, expected):
    assert trained_levels(SD3, torch.tensor(host)).tolist() == pytest.approx(expected, abs=2e-5)


def test_the_first_level_is_the_hosts_own_number():
    host = torch.tensor([0.80000001, 0.4, 0], dtype=torch.float64)
    found = trained_levels(SD3, host)
    assert found.dtype == torch.float64 and float(found[0]) == float(host[0].float())


def test_a_plan_reads_what_a_file_can_hold():
    again = Recipe.from_json(UNEVEN.to_json())
    assert torch.equal(respaced(again, 6), respaced(UNEVEN, 6))
