"""Predictions: every conversion undone by its inverse, and true on the path itself."""

import pytest
import torch
from dpdmd_studio.core.diffusion import prediction as p
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.core.errors import SettingsError
from oracle import from_x0

CASES = [
    ("x0", s.VPSchedule()),
    ("eps", s.VPSchedule()),
    ("v", s.VPSchedule()),
    ("v", s.VPSchedule(zero_terminal_snr=True)),
    ("x0", s.FlowSchedule()),
    ("flow", s.FlowSchedule()),
]


@pytest.fixture
def path():
    generator = torch.Generator().manual_seed(5)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=generator).unbind(0)
    return x0, eps


@pytest.mark.parametrize(("prediction", "schedule"), CASES)
@pytest.mark.parametrize("position", [-1.0, 0.0, 100.0, 500.0, 998.0, 999.0])
def test_the_training_target_stands_for_x0(prediction, schedule, position, path):
    x0, eps = path
    alpha, std = schedule.scales(schedule.sigma_at(torch.tensor([position])))
    x_t = alpha * x0 + std * eps
    output = p.training_target(prediction, x0, eps, alpha, std)
    recovered = p.to_x0(prediction, output, x_t, alpha, std)
    # eps -> x0 divides by alpha, which multiplies float32 rounding by std / alpha (14.6 at most)
    torch.testing.assert_close(recovered, x0, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(("prediction", "schedule"), CASES)
@pytest.mark.parametrize("position", [0.0, 100.0, 500.0, 999.0])
def test_from_x0_inverts_to_x0(prediction, schedule, position, path):
    output, x_t = path
    alpha, std = schedule.scales(schedule.sigma_at(torch.tensor([position])))
    x0 = p.to_x0(prediction, output, x_t, alpha, std)
    again = from_x0(prediction, x0, x_t, alpha, std)
    torch.testing.assert_close(again, output, rtol=1e-3, atol=2e-4)


def test_unknown_predictions_are_refused():
    one = torch.ones(1)
    with pytest.raises(SettingsError, match="'sample'"):
        p.to_x0("sample", one, one, one, one)
