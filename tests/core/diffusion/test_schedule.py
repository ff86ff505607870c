"""Noise schedules: published numbers, inverses, and the grids that plain hosts use."""

import pytest
import torch
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.core.errors import SettingsError

SCHEDULES = [s.VPSchedule(), s.VPSchedule(zero_terminal_snr=True), s.FlowSchedule(3.0)]


def test_vp_schedule_has_stable_diffusions_published_ends():
    sigmas = s.VPSchedule().sigma_at(torch.tensor([0.0, 999.0]))
    torch.testing.assert_close(sigmas, torch.tensor([0.029167, 14.614647]), rtol=1e-5, atol=1e-6)


def test_vp_levels_equal_the_diffusers_schedule():
    from diffusers import DDIMScheduler

    for zsnr in (False, True):
        reference = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            rescale_betas_zero_snr=zsnr,
        )
        abar = reference.alphas_cumprod.double()[:999]
        ours = s.VPSchedule(zsnr).sigma_at(torch.arange(999.0)).double()
        # diffusers accumulates abar in float32, hence the tolerance near the noisy end
        torch.testing.assert_close(1 / (1 + ours**2), abar, rtol=2e-3 if zsnr else 1e-4, atol=1e-7)


def test_zero_terminal_snr_ends_at_the_number_hosts_use():
    sigma = float(s.VPSchedule(zero_terminal_snr=True).sigma_at(torch.tensor(999.0)))
    assert 1 / (1 + sigma**2) == pytest.approx(4.8973451890853435e-08, rel=1e-9)


def test_four_step_grids_are_the_documented_ones():
    assert s.few_step_positions(4).tolist() == [999, 749, 499, 249, -1]
    levels = s.Levels.at_positions(s.VPSchedule(), s.few_step_positions(4))
    torch.testing.assert_close(levels.timesteps[:4], torch.tensor([999.0, 749.0, 499.0, 249.0]))
    flow = s.Levels.at_positions(s.FlowSchedule(3.0), s.few_step_positions(4))
    torch.testing.assert_close(flow.sigmas, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    torch.testing.assert_close(flow.timesteps, 1000 * flow.sigmas)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 8])
def test_few_step_grid_is_the_simple_rule_of_hosts(num_steps):
    # ComfyUI's "simple" picks sigmas[-(1 + int(i * 1000 / steps))] out of its 1000
    expected = [999 - int(i * (1000 / num_steps)) for i in range(num_steps)]
    assert s.few_step_positions(num_steps).tolist() == [*expected, -1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timestep_inverts_sigma(schedule):
    positions = torch.tensor([0.0, 0.5, 17.25, 249.0, 499.5, 999.0])
    sigmas = schedule.sigma_at(positions)
    if isinstance(schedule, s.FlowSchedule):
        torch.testing.assert_close(schedule.timestep_at(sigmas), 1000 * sigmas)
    else:
        torch.testing.assert_close(schedule.timestep_at(sigmas), positions, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_run_from_pure_noise_to_clean(schedule):
    levels = s.Levels.at_positions(schedule, s.trailing_positions(28))
    assert float(levels.sigmas[0]) == pytest.approx(
        float(schedule.sigma_at(torch.tensor(999.0))), rel=1e-6
    )
    assert (levels.sigmas.diff() < 0).all()
    assert levels.sigmas[-1] == 0 and levels.alphas[-1] == 1 and levels.stds[-1] == 0
    if isinstance(schedule, s.VPSchedule):
        ones = torch.ones(29)
        torch.testing.assert_close(levels.alphas**2 + levels.stds**2, ones)


def test_a_refined_grid_keeps_the_students_points():
    coarse = s.few_step_positions(3)
    fine = s.refine_positions(coarse, 7)
    assert len(fine) == 22
    assert torch.equal(fine[::7], coarse)
    assert (fine.diff() < 0).all()
    torch.testing.assert_close(
        s.refine_positions(s.few_step_positions(4), 7), s.trailing_positions(28)
    )


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(SettingsError, match="between 1 and 1000"):
        s.few_step_positions(num_steps)
