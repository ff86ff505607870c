"""Guidance of the DMD real score: its own scale, its interval, and what an update evaluates."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.diffusion.schedule import FlowSchedule, Levels, VPSchedule
from dpdmd_studio.trainer.method.dp_dmd import student_update
from dpdmd_studio.trainer.method.objective import Draws, Grids, Objective, draw
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.model.roles import RoleNetwork
from dpdmd_studio.trainer.training.in_force import SettingsInForce
from oracle import GaussianOracle

SCHEDULE = FlowSchedule()
GRIDS = Grids.of(SCHEDULE, 4, 28, 7, 1)
ROWS, W, FAKE = 6, 3.0, GaussianOracle(mean=0.1, std=0.9)
MEANS = torch.linspace(0.2, 1.2, ROWS)  # what the prompts say of the data
NEGATIVE = -0.4  # and the negative prompt


def oracle(means: torch.Tensor) -> GaussianOracle:
    return GaussianOracle(mean=means.reshape(-1, 1, 1, 1))  # type: ignore[arg-type]


class Call:
    """The ideal denoiser of each prompt's data; the student has one weight."""

    prediction = "x0"

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.tensor(0.3))
        self.role, self.rows = "", []

    def use(self, role):
        self.role = role

    def __call__(self, x_t, timesteps, conditioning):
        self.rows.append((self.role, len(x_t)))
        assert len(x_t) == len(timesteps) == len(conditioning)
        if self.role == "student":
            return 0.5 * x_t + self.weight
        level = Levels.at_sigmas(SCHEDULE, timesteps / 1000)
        if self.role == "fake":
            return FAKE.x0(x_t, level)
        return oracle(conditioning.context[:, 0, 0]).x0(x_t, level)

    def evaluated(self, role):
        return [rows for one, rows in self.rows if one == role]


def prompts(*, repeatable=True, tokens=1):
    """MEANS against NEGATIVE; `tokens` is how long the negative prompt is."""
    negative = Conditioning(torch.full((1, tokens, 1), NEGATIVE), repeatable=repeatable)
    return PromptPair.of(Conditioning(MEANS.reshape(-1, 1, 1), repeatable=repeatable), negative)


def noise():
    return torch.randn(ROWS, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def drawn(aim: Objective) -> Draws:
    return draw(aim, GRIDS, tuple(noise().shape), torch.Generator().manual_seed(1))


def objective(interval=(0, 1000), **settings) -> Objective:
    whole = {"teacher_guidance": Guidance(W), "variant": "dmd", "supervision": "last"}
    return Objective(**{**whole, "guidance_interval": interval, **settings})


def update(aim: Objective, pair: PromptPair | None = None):
    """(metrics, the student's samples, the call) of one student update."""
    call = Call()
    network = RoleNetwork(call, call).bound(pair or prompts(), ROWS, of=ROWS)  # type: ignore[arg-type]
    metrics, x0 = student_update(network, noise(), drawn(aim), aim, GRIDS)
    return metrics, x0, call


def expected(x0, aim: Objective, scale: float, rescale: float = 0.0) -> torch.Tensor:
    """The gradient in the student's weight by Eq. 5, row by row."""
    draws, (least, most), total = drawn(aim), aim.guidance_interval, torch.zeros(())
    for row in range(ROWS):
        level = draws.level[row]
        alpha, std = level.broadcast_scales
        x_t = alpha * x0[row] + std * draws.noise[row]
        conditional = GaussianOracle(mean=float(MEANS[row])).x0(x_t, level)
        real = conditional
        if least <= float(level.timesteps) <= most:
            unconditional = GaussianOracle(mean=NEGATIVE).x0(x_t, level)
            real = unconditional + scale * (conditional - unconditional)  # arXiv:2207.12598, Eq. 6
            share = conditional.std() / real.std()  # arXiv:2305.08891, Eq. 15 and 16
            real = rescale * real * share + (1 - rescale) * real
        total += ((FAKE.x0(x_t, level) - real) / (x_t - real).abs().mean()).mean() / ROWS
    return total


def inside(interval) -> int:
    timesteps = drawn(objective()).level.timesteps
    return int(((timesteps >= interval[0]) & (timesteps <= interval[1])).sum())


@pytest.mark.parametrize(
    ("interval", "settings", "scale", "rescale"),
    [
        ((0, 1000), {}, W, 0.0),
        ((0, 1000), {"real_guidance": Guidance(1.5)}, 1.5, 0.0),
        ((0, 1000), {"real_guidance": Guidance(1.0)}, 1.0, 0.0),
        ((0, 800), {}, W, 0.0),
        ((600, 900), {"real_guidance": Guidance(5.0, 0.7)}, 5.0, 0.7),
        ((0, 1), {}, W, 0.0),
    ],
)
def test_the_gradient_is_that_of_the_guided_oracle_inside_and_the_plain_one_outside(
    interval, settings, scale, rescale
):
    aim = objective(interval, **settings)
    _, x0, call = update(aim)
    torch.testing.assert_close(call.weight.grad, expected(x0, aim, scale, rescale))


@pytest.mark.parametrize("interval", [(0, 1000), (0, 800), (600, 900), (0, 1)])
def test_the_negative_prompt_is_evaluated_for_rows_inside_alone(interval):
    _, _, call = update(objective(interval))
    assert call.evaluated("teacher") == [ROWS + inside(interval)]
    assert call.evaluated("fake") == [ROWS]


def test_the_intervals_of_these_tests_hold_all_some_and_none():
    found = [inside(interval) for interval in ((0, 1000), (0, 800), (600, 900), (0, 1))]
    assert found[0] == ROWS and 0 < found[1] < ROWS and 0 < found[2] < ROWS and found[3] == 0


def test_rows_inside_are_apart_where_prompts_do_not_batch_exactly():
    aim = objective((0, 800))
    _, x0, call = update(aim, prompts(repeatable=False, tokens=2))
    assert call.evaluated("teacher") == [ROWS, inside((0, 800))]
    torch.testing.assert_close(call.weight.grad, expected(x0, aim, W))


def test_the_anchor_keeps_its_own_guidance():
    both = {"variant": "dp_dmd", "diversity_weight": 1.0}
    one, _, first = update(objective(**both))
    other, _, second = update(objective((0, 800), real_guidance=Guidance(1.5), **both))
    assert torch.equal(one["diversity_loss"], other["diversity_loss"])
    assert not torch.equal(one["matching_gradient"], other["matching_gradient"])
    anchors = [2 * ROWS] * 7
    assert first.evaluated("teacher") == [*anchors, 2 * ROWS]
    assert second.evaluated("teacher") == [*anchors, ROWS + inside((0, 800))]


def test_a_micro_batch_knows_which_of_its_rows_are_guided():
    whole = drawn(objective((0, 800)))
    timesteps = whole.level.timesteps
    assert list(whole.guided) == (timesteps <= 800).tolist()
    assert whole[slice(2, 5)].guided == whole.guided[2:5]
    assert whole.map(lambda tensor: tensor).guided == whole.guided


def test_the_ends_of_the_interval_belong_to_it():
    levels = GRIDS.training.timesteps
    for least, most in ((levels[300], levels[300]), (levels[0], levels[999])):
        aim = objective((float(least), float(most)))
        found = draw(aim, GRIDS, (4000, 1, 1, 1), torch.Generator().manual_seed(0))
        wanted = (found.level.timesteps >= least) & (found.level.timesteps <= most)
        assert list(found.guided) == wanted.tolist() and any(found.guided)


def in_force(**settings) -> SettingsInForce:
    return SettingsInForce(DistillConfig.from_dict(settings), Guidance(7.0, 0.7))


def test_the_real_scores_guidance_is_the_teachers_unless_it_is_set():
    aim = in_force().objective()
    assert aim.teacher_guidance == aim.real_guidance == Guidance(7.0, 0.7)
    aim = in_force(real_guidance=1.75, real_guidance_high=900).objective()
    assert (aim.teacher_guidance, aim.real_guidance) == (Guidance(7.0, 0.7), Guidance(1.75, 0.7))
    assert aim.guidance_interval == (0, 900)


def test_renoising_is_annealed_from_the_upper_half_to_all_levels():
    settings = in_force(renoise_anneal_steps=4)
    found = [settings.objective(step).renoise_from for step in (1, 2, 3, 4, 5, 1000, None)]
    assert found == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    assert in_force().objective(1).renoise_from == 0.0


@pytest.mark.parametrize("schedule", [FlowSchedule(), VPSchedule()])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_annealed_levels_are_the_upper_ones(schedule, share):
    grids = Grids.of(schedule, 4, 28, 7, 1)
    low, high = schedule.dmd_positions
    least = low + round(share * (high - low))
    shape, aim = (20_000, 1, 1, 1), objective(renoise_from=share)
    found = draw(aim, grids, shape, torch.Generator().manual_seed(0)).level.sigmas
    assert float(found.min()) == float(grids.training[least].sigmas)
    assert float(found.max()) == float(grids.training[high].sigmas)
