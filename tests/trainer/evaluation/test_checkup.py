"""What `check` measures, on data of which the answer is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from dpdmd_studio.core.diffusion.guidance import NO_GUIDANCE
from dpdmd_studio.core.diffusion.schedule import FlowSchedule, VPSchedule, few_step_positions
from dpdmd_studio.trainer.evaluation.checkup import (
    MUCH_NOISE,
    denoised,
    format_errors,
    neighbours,
    reference,
)
from dpdmd_studio.trainer.memory.live_bytes import peak_bytes
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from safetensors import safe_open
from safetensors.torch import save_file

CPU = torch.device("cpu")
ROW = Conditioning(torch.zeros(1, 1, 1))
PAIR = PromptPair(ROW, ROW)


@dataclass
class Coins:
    """Networks for data of -1 and 1, each as likely: the mean of what fits, or one of both."""

    schedule: VPSchedule | FlowSchedule
    commits: bool = False
    rounded: torch.dtype = torch.float32
    prediction: str = "x0"
    device: torch.device = CPU

    def __call__(self, x_t, timesteps, conditioning):
        if isinstance(self.schedule, FlowSchedule):
            sigma = timesteps[0] / 1000
        else:
            sigma = self.schedule.sigma_at(timesteps[0].double())
        alpha, std = self.schedule.scales(sigma.float())
        mean = torch.tanh(alpha * x_t / std**2)
        found = mean.sign() if self.commits else mean
        return found.to(self.rounded).float()


def coins(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (count, 4, 16, 16), generator=generator).float() * 2 - 1


@pytest.mark.parametrize("schedule", [VPSchedule(), FlowSchedule()])
def test_a_denoiser_hedges_and_one_that_commits_does_not(schedule):
    images = coins()
    ordinary = denoised(Coins(schedule), [ROW] * 6, images, MUCH_NOISE)
    few_step = denoised(Coins(schedule, commits=True), [ROW] * 6, images, MUCH_NOISE)
    assert ordinary.hedging == pytest.approx(1, abs=0.1)
    assert few_step.hedging == pytest.approx(0, abs=0.05)
    assert ordinary.hedging_error < 0.1 and few_step.hedging_error < 0.05
    assert denoised(Coins(schedule), [ROW] * 6, images, (20,)).correlation > 0.9


def test_a_network_that_knows_nothing_of_an_image_does_not_find_it_again():
    other = denoised(Coins(VPSchedule()), [ROW] * 6, 14 * torch.randn(6, 4, 16, 16), (249,))
    assert 0 < other.correlation < 0.85
    nothing = denoised(Coins(VPSchedule()), [ROW], torch.zeros(1, 4, 8, 8), (999,))
    assert nothing.correlation == pytest.approx(0, abs=1e-3)


def test_neighbours_tell_noise_from_smooth_images():
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert abs(neighbours(noise)) < 0.1
    rising = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    assert neighbours(rising) > 0.9
    assert neighbours(torch.ones(1, 3, 8, 8)) == 1


def test_errors_of_number_formats_are_those_of_the_rounding():
    schedule, positions = VPSchedule(), few_step_positions(4)[:2]
    exact = reference(Coins(schedule), (4, 8, 8), PAIR, NO_GUIDANCE, positions)
    assert exact.states.shape == exact.x0.shape == (2, 4, 8, 8)
    same = format_errors(Coins(schedule), exact, PAIR, NO_GUIDANCE, positions)
    assert same == {"finite": True, "errors": {"999": 0.0, "749": 0.0}}
    rounded = Coins(schedule, rounded=torch.bfloat16)
    errors = format_errors(rounded, exact, PAIR, NO_GUIDANCE, positions)["errors"]
    assert all(1e-4 < error < 2**-8 for error in errors.values())


def test_format_errors_say_what_overflows():
    class Endless(Coins):
        def __call__(self, x_t, timesteps, conditioning):
            return super().__call__(x_t, timesteps, conditioning) / 0

    schedule, positions = VPSchedule(), few_step_positions(4)[:2]
    exact = reference(Coins(schedule), (4, 8, 8), PAIR, NO_GUIDANCE, positions)
    found = format_errors(Endless(schedule), exact, PAIR, NO_GUIDANCE, positions)
    assert not found["finite"] and all(error == 1e9 for error in found["errors"].values())


def test_mapped_files_count_once_they_are_converted(tmp_path):
    save_file({"x": torch.ones(1000, dtype=torch.float16)}, tmp_path / "x.safetensors")
    with peak_bytes(CPU) as peak, safe_open(tmp_path / "x.safetensors", "pt") as file:
        found = file.get_tensor("x").view(10, 100)
        assert peak() == 0
        found.float()
        torch.ones(10**6, device="meta").exp()
    assert peak() == 4000


def test_peak_bytes_are_those_that_were_there_and_those_that_came():
    weight = torch.ones(1000)
    with peak_bytes(CPU, [weight]) as peak:
        assert peak() == 4000
        (weight * 2).sum()
    assert peak() == 4000 + 4000 + 4
