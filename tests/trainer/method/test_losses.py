"""The losses: closed forms, the sign of the matching gradient, its floor."""

import pytest
import torch
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.trainer.method import equations as losses
from oracle import GaussianOracle, from_x0, grid


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize(
    ("prediction", "schedule"), [("flow", s.FlowSchedule()), ("v", s.VPSchedule())]
)
@pytest.mark.parametrize("position", [999, 749])
def test_the_diversity_loss_is_the_mean_squared_velocity_error(
    prediction, schedule, position, generator
):
    x_t, x0, target = (randn(generator, 2, 4, 3, 3) for _ in range(3))
    level = grid(schedule, [position])
    alpha, std = level.broadcast_scales
    velocity, wanted = (from_x0(prediction, y, x_t, alpha, std) for y in (x0, target))
    expected = (velocity - wanted).square().mean()
    torch.testing.assert_close(
        losses.diversity_loss(x0, target, std), expected, rtol=1e-4, atol=1e-5
    )


def test_the_matching_loss_has_exactly_the_given_gradient(generator):
    x0 = randn(generator, 2, 4, 3, 3).requires_grad_()
    gradient = randn(generator, 2, 4, 3, 3)
    losses.dmd_loss(x0, gradient).backward()
    assert x0.grad is not None
    torch.testing.assert_close(x0.grad, gradient / x0.numel())


@pytest.mark.parametrize("schedule", [s.VPSchedule(), s.FlowSchedule()])
def test_descending_the_matching_gradient_moves_samples_to_the_data(schedule, generator):
    real, fake = GaussianOracle(mean=0.8, std=0.5), GaussianOracle(mean=-0.4, std=0.5)
    x0 = fake.mean + fake.std * randn(generator, 64, 4, 4, 4)
    level = grid(schedule, [500])
    alpha, std = level.broadcast_scales
    x_t = alpha * x0 + std * randn(generator, 64, 4, 4, 4)
    x0_real, x0_fake = real.x0(x_t, level), fake.x0(x_t, level)
    gradient = losses.dmd_gradient(x0_real, x0_fake, x_t - x0_real)
    assert float((x0 - gradient).mean()) > float(x0.mean())
    assert (gradient < 0).all()  # the data lies above the student everywhere


def test_the_matching_gradient_vanishes_when_the_scores_agree(generator):
    x0 = randn(generator, 2, 4, 3, 3)
    assert not losses.dmd_gradient(x0, x0, x0).any()


def test_each_sample_is_normalised_by_its_own_size(generator):
    real, fake = randn(generator, 2, 4, 3, 3), randn(generator, 2, 4, 3, 3)
    reference = torch.ones(2, 4, 3, 3) * torch.tensor([2.0, 0.5]).reshape(2, 1, 1, 1)
    gradient = losses.dmd_gradient(real, fake, reference)
    torch.testing.assert_close(gradient[0], (fake - real)[0] / 2)
    torch.testing.assert_close(gradient[1], (fake - real)[1] / 0.5)


def test_the_normaliser_has_a_floor(generator):
    real, fake = randn(generator, 1, 4, 3, 3), randn(generator, 1, 4, 3, 3)
    gradient = losses.dmd_gradient(real, fake, torch.zeros(1, 4, 3, 3))
    torch.testing.assert_close(gradient, (fake - real) / losses.MIN_NORMALISER)


def test_the_flow_normaliser_cancels_sigma(generator):
    # (x0_fake - x0_real) / mean|x_t - x0_real| = (v_real - v_fake) / mean|v_real|
    level = grid(s.FlowSchedule(), [600])
    _, std = level.broadcast_scales
    x_t, v_real, v_fake = (randn(generator, 2, 4, 3, 3) for _ in range(3))
    x0_real, x0_fake = x_t - std * v_real, x_t - std * v_fake
    residual = s.FlowSchedule().dmd_residual(x_t, randn(generator, 2, 4, 3, 3), x0_real)
    gradient = losses.dmd_gradient(x0_real, x0_fake, residual)
    expected = (v_real - v_fake) / v_real.abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_vp_normalises_by_the_distance_from_the_students_own_image(generator):
    # as DMD2: mean|x0 - x0_real|, whatever x_t is
    x0, x_t, x0_real, x0_fake = (randn(generator, 2, 4, 3, 3) for _ in range(4))
    residual = s.VPSchedule().dmd_residual(x_t, x0, x0_real)
    gradient = losses.dmd_gradient(x0_real, x0_fake, residual)
    expected = (x0_fake - x0_real) / (x0 - x0_real).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, expected)


def test_score_cosine_is_one_for_equal_and_minus_one_for_opposite_scores(generator):
    x_t, step = randn(generator, 2, 4, 3, 3), randn(generator, 2, 4, 3, 3)
    assert float(losses.score_cosine(x_t, x_t + step, x_t + step)) == pytest.approx(1.0)
    assert float(losses.score_cosine(x_t, x_t + step, x_t - step)) == pytest.approx(-1.0)
