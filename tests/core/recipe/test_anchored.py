"""Anchored sampling: where the base model walks, what is handed over, and what that keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from dpdmd_studio.core.diffusion.sampler import sample_few_step
from dpdmd_studio.core.diffusion.schedule import (
    FlowSchedule,
    Levels,
    VPSchedule,
    few_step_positions,
    refine_positions,
)
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.recipe.anchored import (
    AnchoredPlan,
    AnchoredTrajectory,
    AskedAnchor,
    divided_step,
    position_at,
    trained_anchor_steps,
)
from dpdmd_studio.core.recipe.anchored import anchored_plan as plan_of_both
from dpdmd_studio.core.recipe.few_step import default_recipe, plan
from dpdmd_studio.core.recipe.known_students import KNOWN_STUDENTS
from dpdmd_studio.core.recipe.recipe import Anchor, Recipe

SD1 = default_recipe("sd1", "eps")
SD3 = default_recipe("sd3", "flow")
SCHEDULES = {"sd1": VPSchedule(), "sd3": FlowSchedule(3.0)}


def anchored_plan(
    recipe: Recipe, *, steps: int = 0, denoise: float = 1.0, anchor_steps: int = 0, **asked: Any
) -> AnchoredPlan:
    few_step = plan(recipe, steps=steps, denoise=denoise)
    return plan_of_both(recipe, few_step, AskedAnchor(steps=anchor_steps, **asked))


@pytest.mark.parametrize("recipe", [SD1, SD3], ids=["vp", "flow"])
def test_the_base_model_walks_the_teachers_grid_of_the_training(recipe):
    plan = anchored_plan(recipe)
    positions = refine_positions(few_step_positions(4), 7)
    teacher = Levels.at_positions(SCHEDULES[recipe.family], positions).sigmas
    torch.testing.assert_close(plan.base_sigmas, teacher[:8], rtol=2e-6, atol=0)
    assert plan.base_sigmas[-1] == plan.student_sigmas[0] == torch.tensor(recipe.sigmas)[1]
    assert plan.student_sigmas.tolist() == torch.tensor(recipe.sigmas)[1:].tolist()
    assert (plan.num_steps, plan.guidance_scale, plan.solver) == (10, 1.0, "ode")
    assert plan.num_evaluations == 2 * 7 + 3
    assert anchored_plan(recipe, anchor_steps=1, guidance=1.0).num_evaluations == 4


@pytest.mark.parametrize("schedule", [VPSchedule(), VPSchedule(True), FlowSchedule(3.0)])
def test_positions_and_levels_are_inverses(schedule):
    positions = torch.tensor([999.0, 937.5, 500.0, 249.0, 10.25], dtype=torch.float64)
    sigmas = schedule.sigma_at(positions)
    torch.testing.assert_close(position_at(schedule, sigmas), positions, rtol=0, atol=2e-3)
    step = divided_step(schedule, sigmas[:2], 3)
    expected = torch.linspace(999.0, 937.5, 4, dtype=torch.float64)
    torch.testing.assert_close(position_at(schedule, step), expected, rtol=0, atol=2e-3)
    assert step[0] == sigmas[0] and step[-1] == sigmas[1]


def test_the_guidance_is_the_teachers_or_the_familys_or_what_is_asked():
    ours = dataclasses.replace(SD3, objective="dp_dmd", teacher_guidance_scale=2.0)
    assert anchored_plan(ours).base_guidance == 2.0
    assert anchored_plan(SD3).base_guidance == 4.5
    foreign = KNOWN_STUDENTS["LCM"].recipe("sd1", "eps")
    assert anchored_plan(foreign).base_guidance == 7.5
    assert anchored_plan(ours, guidance=1.0).base_guidance == 1.0


def test_the_anchors_of_the_training_are_counted_only_at_the_end_of_the_first_step():
    at_end = Anchor(sigma=0.9, timestep=900.0, steps=10, grid=40)
    trained = dataclasses.replace(SD3, anchor=at_end)
    assert len(anchored_plan(trained).base_sigmas) == 11
    assert len(anchored_plan(trained, anchor_steps=3).base_sigmas) == 4
    elsewhere = dataclasses.replace(SD3, anchor=dataclasses.replace(at_end, sigma=0.8))
    assert trained_anchor_steps(elsewhere, 0.9) == 7


def test_a_weaker_denoise_stays_on_the_grid_and_the_base_takes_its_first_step():
    plan = anchored_plan(SD3, denoise=0.7)
    assert plan.base_sigmas[[0, -1]].tolist() == pytest.approx([0.9, 0.75])
    assert plan.student_sigmas.tolist() == pytest.approx([0.75, 0.5, 0.0])
    assert len(plan.base_sigmas) == 8 and "0.75" in plan.notes[0]
    eight = anchored_plan(SD1, steps=8, denoise=0.5)
    levels = Levels.at_positions(VPSchedule(), few_step_positions(8)).sigmas
    torch.testing.assert_close(eight.student_sigmas, levels[5:])
    assert "8" in eight.notes[0] and "0.5" in eight.notes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoise": 0.2}, "1 step is left.*raise steps, or denoise"),
        ({"steps": 1}, "1 step is left"),
        ({"anchor_steps": -1}, "-1 anchor steps.*expected 1 to 200"),
        ({"anchor_steps": 201}, "201 anchor steps"),
        ({"guidance": 0.0}, "guidance is 0; expected more than 0"),
        ({"solver": "heun"}, "'heun'; expected auto, ode or sde"),
    ],
)
def test_a_plan_that_cannot_be_sampled_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        anchored_plan(SD3, **changes)


def gaussian(variance: float):
    """The exact model of N(0, variance) data: E[x0 | x] = P x / (P + sigma^2)."""
    return lambda x, sigma: x * variance / (variance + sigma.reshape(-1, 1, 1, 1) ** 2)


def collapsed(x, sigma):
    """A student whose first step loses everything the seed says, and whose others are exact."""
    return torch.zeros_like(x) if sigma[0] > 10 else gaussian(1.0)(x, sigma)


def start(sigma: float, variance: float = 1.0) -> torch.Tensor:
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return noise * (variance + sigma**2) ** 0.5


def sampled(plan, base, student, x, **noise) -> torch.Tensor:
    both = AnchoredTrajectory(plan)
    both.base_part(base, x, plan.base_sigmas)
    return both.student_part(student, torch.full_like(x, 99.0), plan.student_sigmas, **noise)


def test_both_parts_with_one_model_are_one_trajectory():
    plan = anchored_plan(SD1, anchor_steps=5)
    model, x = gaussian(0.7), start(SD1.sigmas[0])[:50]
    whole = torch.cat([plan.base_sigmas, plan.student_sigmas[1:]])
    expected = sample_few_step(model, x, whole)
    assert torch.equal(sampled(plan, model, model, x), expected)


def test_the_anchor_restores_the_variance_that_a_collapsed_first_step_lost():
    x = start(SD1.sigmas[0])
    alone = sample_few_step(collapsed, x, torch.tensor(SD1.sigmas)).var()
    model = gaussian(1.0)
    exact = sample_few_step(model, x, torch.tensor(SD1.sigmas)).var()
    anchored = sampled(anchored_plan(SD1), model, collapsed, x).var()
    one_plain = sampled(anchored_plan(SD1, anchor_steps=1), model, collapsed, x).var()
    # the student's own start noise remains in the state, so a little is left even when collapsed
    assert alone < one_plain < anchored
    assert anchored == pytest.approx(float(exact), rel=0.1)


def test_the_handover_keeps_the_variance_that_renoising_a_mean_would_lose():
    variance, s_0, s_1 = 30.0, SD1.sigmas[0], SD1.sigmas[1]
    both = AnchoredTrajectory(anchored_plan(SD1, anchor_steps=1))
    z_1 = both.base_part(gaussian(variance), start(s_0, variance), both.plan.base_sigmas)
    missing = variance + s_1**2 - float(z_1.var())
    predicted = variance * (s_0 - s_1) ** 2 / (variance + s_0**2)
    assert missing == pytest.approx(predicted, rel=0.05)
    assert missing < 0.7 * variance * s_0**2 / (variance + s_0**2)  # a re-noised mean
    many = AnchoredTrajectory(anchored_plan(SD1, anchor_steps=100))
    z_k = many.base_part(gaussian(variance), start(s_0, variance), many.plan.base_sigmas)
    assert float(z_k.var()) == pytest.approx(variance + s_1**2, rel=0.05)


@pytest.mark.parametrize("recipe", [SD1, SD3], ids=["vp", "flow"])
def test_fresh_noise_comes_in_after_the_students_first_step_and_nowhere_else(recipe):
    plan = anchored_plan(recipe, anchor_steps=2, solver="sde")
    x = start(recipe.sigmas[0])[:3]
    asked = []

    def noise(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return torch.full_like(x, 2.0)

    def student(x, sigma):
        return torch.full_like(x, float(sigma[0]))

    seen = []

    def watch(step):
        seen.append(step["x"].clone())

    both = AnchoredTrajectory(plan)
    z_k = both.base_part(gaussian(1.0), x, plan.base_sigmas)
    out = both.student_part(student, x, plan.student_sigmas, callback=watch, noise_sampler=noise)
    s = plan.student_sigmas.tolist()
    assert asked == [(s[0], s[1]), (s[1], s[2])]  # not at the handover, not before the end
    assert torch.equal(seen[0], z_k)
    kept = 1 - s[1] if recipe is SD3 else 1.0
    torch.testing.assert_close(seen[1], torch.full_like(x, kept * s[0] + 2 * s[1]))
    assert torch.equal(out, torch.full_like(x, s[2]))
