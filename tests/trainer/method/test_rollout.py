"""Roll-outs, anchor and chord against the closed-form Gaussian."""

import pytest
import torch
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.core.diffusion.sampler import sample_few_step
from dpdmd_studio.trainer.method.equations import chord_x0, ode_step, roll, teacher_path
from oracle import GaussianOracle

SCHEDULES = [s.VPSchedule(), s.VPSchedule(zero_terminal_snr=True), s.FlowSchedule()]
ORACLE = GaussianOracle()


@pytest.fixture
def noise():
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rollout_converges_to_the_exact_ode_first_order(schedule, noise):
    errors = []
    for steps in (50, 100, 200):
        levels = s.Levels.at_positions(schedule, s.trailing_positions(steps))
        exact = ORACLE.follow(noise, levels[0], levels[-1])
        errors.append(float((roll(ORACLE.x0, noise, levels, 0, steps) - exact).abs().max()))
    assert errors[0] < 0.1
    # halving the step halves the error: ratios near 2 (the clean end is coarser on a VP schedule)
    assert 1.5 < errors[0] / errors[1] < 3 and 1.5 < errors[1] / errors[2] < 3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_engine_and_the_host_contract_sample_alike(schedule, noise):
    levels = s.Levels.at_positions(schedule, s.few_step_positions(4))
    ours = roll(ORACLE.x0, noise, levels, 0, 4)

    def host_model(x, sigma):
        level = s.Levels.at_sigmas(schedule, sigma)
        alpha, _ = level.broadcast_scales
        x_t = x if isinstance(schedule, s.FlowSchedule) else alpha * x
        return ORACLE.x0(x_t, level)

    start = noise
    if not isinstance(schedule, s.FlowSchedule):
        start = noise * (1 + levels.sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(
        sample_few_step(host_model, start, levels.sigmas), ours, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("anchor_step", [1, 5, 7, 28])
def test_one_step_towards_the_chord_lands_on_the_anchor(schedule, anchor_step, noise):
    levels = s.Levels.at_positions(schedule, s.trailing_positions(28))
    (anchor,) = teacher_path(ORACLE.x0, noise, levels, [anchor_step])
    target = chord_x0(noise, anchor, levels[0], levels[anchor_step])
    landed = ode_step(noise, target, levels[0], levels[anchor_step])
    # close to the start the chord divides by a small difference of alphas
    torch.testing.assert_close(landed, anchor, rtol=1e-3, atol=1e-3)


def test_on_a_flow_the_chord_is_the_papers_average_velocity(noise):
    levels = s.Levels.at_positions(s.FlowSchedule(), s.trailing_positions(30))
    (anchor,) = teacher_path(ORACLE.x0, noise, levels, [5])
    t_k = float(levels.sigmas[5])
    velocity = (noise - anchor) / (1 - t_k)  # Eq. 6
    target = chord_x0(noise, anchor, levels[0], levels[5])
    torch.testing.assert_close(noise - target, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_anchor_is_where_the_exact_trajectory_goes(schedule, noise):
    positions = s.refine_positions(s.few_step_positions(4), 250)
    levels = s.Levels.at_positions(schedule, positions)
    (anchor,) = teacher_path(ORACLE.x0, noise, levels, [250])
    exact = ORACLE.follow(noise, levels[0], levels[250])
    torch.testing.assert_close(anchor, exact, rtol=2e-2, atol=2e-2)


def test_stops_lie_on_one_trajectory(noise):
    levels = s.Levels.at_positions(s.FlowSchedule(), s.trailing_positions(28))
    first, second = teacher_path(ORACLE.x0, noise, levels, [7, 14])
    assert torch.equal(second, roll(ORACLE.x0, first, levels, 7, 14))
