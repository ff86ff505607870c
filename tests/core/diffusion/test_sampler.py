"""The few-step sampler against diffusers' schedulers, closed forms, and its own contract."""

import pytest
import torch
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.core.diffusion.prediction import to_x0
from dpdmd_studio.core.diffusion.sampler import (
    partial_sigmas,
    renoised,
    sample_few_step,
    sigmas_from,
)
from dpdmd_studio.core.errors import SettingsError

GRID = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    return lambda x, timestep: torch.tanh(layer(x)) + timestep / 1000


@pytest.fixture
def noise():
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def test_flow_sampling_equals_diffusers_euler(network, noise):
    from diffusers import FlowMatchEulerDiscreteScheduler

    reference = FlowMatchEulerDiscreteScheduler(shift=1.0)
    reference.set_timesteps(sigmas=GRID[:-1].tolist())
    x = noise
    for t in reference.timesteps:
        x = reference.step(network(x, t), t, x).prev_sample
    ours = sample_few_step(lambda x, sigma: x - sigma[0] * network(x, 1000 * sigma[0]), noise, GRID)
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_vp_sampling_equals_diffusers_ddim(network, noise, prediction):
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
    )
    reference.set_timesteps(4)
    x = noise
    for t in reference.timesteps:
        x = reference.step(network(x, float(t)), t, x, eta=0.0).prev_sample

    schedule = s.VPSchedule()

    def model(x, sigma):
        alpha, std = schedule.scales(sigma[:, None, None, None])
        x_t = alpha * x
        return to_x0(prediction, network(x_t, schedule.timestep_at(sigma[:1])), x_t, alpha, std)

    sigmas = schedule.sigma_at(s.few_step_positions(4))
    ours = sample_few_step(model, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas)
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)


def test_one_point_data_is_reached_in_one_step_from_anywhere(noise):
    target = torch.full_like(noise, 0.25)
    sample = sample_few_step(lambda x, sigma: target, noise, torch.tensor([14.6, 0.0]))
    assert torch.equal(sample, target)


def test_the_callback_sees_every_step_and_extra_arguments_arrive(noise):
    seen = []

    def model(x, sigma, scale):
        assert sigma.shape == (2,)
        return scale * x

    sample_few_step(model, noise, GRID, {"scale": 0.5}, seen.append, disable=True)
    assert [event["i"] for event in seen] == [0, 1, 2, 3]
    assert [float(event["sigma"]) for event in seen] == pytest.approx(GRID[:-1].tolist())
    assert torch.equal(seen[0]["denoised"], 0.5 * noise)


@pytest.mark.parametrize(
    ("denoise", "expected"),
    [
        (1.0, [1.0, 0.9, 0.75, 0.5, 0.0]),
        (0.7, [0.9, 0.75, 0.5, 0.0]),
        (0.5, [0.75, 0.5, 0.0]),
        (0.3, [0.5, 0.0]),
        (0.01, [0.5, 0.0]),
        (0.625, [0.9, 0.75, 0.5, 0.0]),
    ],
)
def test_partial_denoise_stays_on_the_trained_grid(denoise, expected):
    assert partial_sigmas(GRID, denoise).tolist() == pytest.approx(expected)


def test_exact_strength_keeps_trained_levels_below_the_start():
    assert sigmas_from(GRID, 0.8).tolist() == pytest.approx([0.8, 0.75, 0.5, 0.0])
    assert sigmas_from(GRID, 0.75).tolist() == pytest.approx([0.75, 0.5, 0.0])


@pytest.mark.parametrize("bad", [[1.0, -0.5], [0.5, 1.0, 0.0], [1.0, 1.0, 0.0]])
def test_grids_that_cannot_be_sampled_are_refused(bad, noise):
    with pytest.raises(SettingsError, match="decreasing"):
        sample_few_step(lambda x, sigma: x, noise, torch.tensor(bad))


def test_a_trajectory_may_be_drawn_in_parts():
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def model(x, sigma):
        return torch.tanh(x) * (1 - sigma.reshape(-1, 1, 1, 1))

    middle = sample_few_step(model, noise, GRID[:3])
    assert torch.equal(
        sample_few_step(model, middle, GRID[2:]), sample_few_step(model, noise, GRID)
    )
    assert sample_few_step(model, noise, GRID[-1:]) is noise


@pytest.mark.parametrize("denoise", [0.0, -0.1, 1.1])
def test_nonsensical_strengths_are_refused(denoise):
    with pytest.raises(SettingsError, match="denoise"):
        partial_sigmas(GRID, denoise)


# The re-noising solver


class Drawn:
    """A noise stream of known numbers, which remembers for which levels it was asked."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = list(values), []

    def __call__(self, sigma, sigma_next):
        self.asked.append((float(sigma), float(sigma_next)))
        return torch.full((1, 1, 1, 1), self.values.pop(0))


def test_the_sde_step_of_a_vp_model_by_hand():
    """x0 = x / 4. x: 8 -> 2 + 3 * 1 = 5 -> 1.25 + 1 * -2 = -0.75 -> -0.1875."""
    noise = Drawn(1.0, -2.0)
    sample = sample_few_step(
        lambda x, sigma: x / 4,
        torch.full((1, 1, 1, 1), 8.0),
        torch.tensor([6.0, 3.0, 1.0, 0.0]),
        solver="sde",
        noise_sampler=noise,
    )
    assert sample.item() == -0.1875
    assert noise.asked == [(6, 3), (3, 1)]


def test_the_sde_step_of_a_flow_by_hand():
    """x0 = x / 4. x: 8 -> .5 * 2 + .5 * 1 = 1.5 -> .75 * .375 + .25 * -2 = -.21875 -> / 4."""
    noise = Drawn(1.0, -2.0)
    sample = sample_few_step(
        lambda x, sigma: x / 4,
        torch.full((1, 1, 1, 1), 8.0),
        torch.tensor([1.0, 0.5, 0.25, 0.0]),
        solver="sde",
        noise_sampler=noise,
        flow=True,
    )
    assert sample.item() == -0.0546875
    assert noise.asked == [(1, 0.5), (0.5, 0.25)]


def test_a_part_of_an_sde_trajectory_ends_noisy():
    x = torch.full((1, 1, 1, 1), 8.0)
    part = sample_few_step(
        lambda x, sigma: x / 4,
        x,
        torch.tensor([6.0, 3.0]),
        solver="sde",
        noise_sampler=Drawn(1.0),
    )
    assert part.item() == 5.0


@pytest.mark.parametrize("flow", [False, True])
def test_renoised_pictures_have_the_level_that_is_asked_for(flow, noise):
    x0 = torch.full_like(noise, 3.0)
    found = renoised(x0, 0.75, noise, flow)
    torch.testing.assert_close((found - (0.75 if flow else 3.0)) / 0.75, noise)


def test_both_solvers_agree_on_one_step_and_a_noise_sampler_alone_changes_nothing(noise):
    def model(x, sigma):
        return torch.tanh(x)

    def stream(sigma, sigma_next):
        raise AssertionError("no noise is needed")

    one = torch.tensor([1.0, 0.0])
    sde = sample_few_step(model, noise, one, solver="sde", noise_sampler=stream)
    assert torch.equal(sde, torch.tanh(noise))
    ode = sample_few_step(model, noise, GRID, noise_sampler=stream)
    assert torch.equal(ode, sample_few_step(model, noise, GRID))


def test_solvers_that_cannot_run_are_refused(noise):
    with pytest.raises(SettingsError, match="no solver 'heun'; expected ode or sde"):
        sample_few_step(lambda x, sigma: x, noise, GRID, solver="heun")
    with pytest.raises(SettingsError, match="needs a noise_sampler"):
        sample_few_step(lambda x, sigma: x, noise, GRID, solver="sde")
