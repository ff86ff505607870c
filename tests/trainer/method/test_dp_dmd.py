"""Gradient routing of DP-DMD, shown on a network with one student weight per step."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.core.diffusion.guidance import NO_GUIDANCE, Guidance
from dpdmd_studio.trainer.method.dp_dmd import (
    anchor_targets,
    denoiser,
    fake_update,
    student_samples,
    student_update,
)
from dpdmd_studio.trainer.method.objective import (
    Grids,
    Objective,
    draw,
    draw_for_fake,
    draw_supervised_step,
)
from oracle import GaussianOracle, grid


class ToyNetwork:
    """x0 prediction; student: one weight per grid step; teacher: a Gaussian, moved by guidance."""

    prediction = "x0"

    def __init__(self):
        self.schedule = s.FlowSchedule()
        positions = s.few_step_positions(4)[:-1]
        self.grid = grid(self.schedule, positions).timesteps
        self.student = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.fake = torch.nn.Parameter(torch.tensor(0.5))

    def __call__(self, role, x_t, level, guidance=NO_GUIDANCE):
        if role == "student":
            step = int((self.grid - level.timesteps).abs().argmin())
            return 0.5 * x_t + self.student[step]
        if role == "fake":
            return 0.4 * x_t + self.fake
        return GaussianOracle(mean=0.0).x0(x_t, level) + 0.2 + guidance.scale

    def backward(self, role, loss, weight=1.0):
        (weight * loss).backward()


def grids(schedule=None, *, anchored=1, anchor_step=7):
    return Grids.of(schedule or s.FlowSchedule(), 4, 28, anchor_step, anchored)


def objective(variant="dp_dmd", **settings):
    guidance = Guidance(3.0)
    return Objective(
        **{"supervision": "all", "teacher_guidance": guidance, "variant": variant, **settings}
    )


def noise(size=2):
    return torch.randn(size, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def update(network, aim, generator, size=2):
    levels = grids(anchored=aim.num_anchored_steps)
    start = noise(size)
    draws = draw(aim, levels, tuple(start.shape), generator)
    return student_update(network, start, draws, aim, levels)


def student_gradient(variant="dp_dmd", seed=0, **settings):
    network = ToyNetwork()
    update(network, objective(variant, **settings), torch.Generator().manual_seed(seed))
    assert network.fake.grad is None
    return network.student.grad


def test_the_diversity_loss_reaches_the_first_step_alone():
    with_it = student_gradient(diversity_weight=1.0)
    without = student_gradient(diversity_weight=0.0)
    assert with_it[0] != 0
    assert torch.equal(with_it[1:], without[1:])


def test_the_matching_gradient_at_step_one_is_exactly_zero():
    gradient = student_gradient(diversity_weight=0.0)
    assert gradient[0] == 0
    assert (gradient[1:] != 0).all()


@pytest.mark.parametrize("supervision", ["random", "last", "all"])
@pytest.mark.parametrize("anchored", [1, 2, 3])
def test_matching_never_reaches_anchored_steps(supervision, anchored):
    for seed in range(6):
        gradient = student_gradient(
            seed=seed,
            diversity_weight=0.0,
            supervision=supervision,
            num_anchored_steps=anchored,
        )
        assert (gradient[:anchored] == 0).all()
        assert (gradient[anchored:] != 0).any()


@pytest.mark.parametrize("anchored", [1, 2, 3])
def test_every_anchored_step_is_taught(anchored):
    with_it = student_gradient(diversity_weight=1.0, num_anchored_steps=anchored)
    without = student_gradient(diversity_weight=0.0, num_anchored_steps=anchored)
    assert (with_it[:anchored] != without[:anchored]).all()
    assert torch.equal(with_it[anchored:], without[anchored:])


def test_plain_dmd_reaches_the_first_step():
    assert student_gradient("dmd")[0] != 0


def test_detach_only_leaves_the_first_step_alone():
    assert student_gradient("detach_only")[0] == 0


def test_without_the_detach_both_losses_reach_the_first_step():
    both = student_gradient("no_detach", diversity_weight=1.0)
    matching = student_gradient("no_detach", diversity_weight=0.0)
    assert matching[0] != 0 and both[0] != matching[0]
    # the matching part is plain DMD's own gradient
    torch.testing.assert_close(matching, student_gradient("dmd"))


def test_last_supervises_the_last_step_alone():
    gradient = student_gradient(diversity_weight=0.0, supervision="last")
    assert (gradient[:3] == 0).all() and gradient[3] != 0


def test_random_supervises_one_matched_step_and_visits_all():
    visited = set()
    for seed in range(20):
        gradient = student_gradient(seed=seed, diversity_weight=0.0, supervision="random")
        (step,) = gradient.nonzero().flatten().tolist()
        visited.add(step)
    assert visited == {1, 2, 3}


def test_the_first_step_descends_to_the_teachers_chord():
    network = ToyNetwork()
    # the gradient of DMD never reaches the first step, so this is the diversity loss alone
    aim = objective(diversity_weight=1.0, supervision="last")
    optimizer = torch.optim.SGD([network.student], lr=0.3)
    for _step in range(200):
        optimizer.zero_grad()
        update(network, aim, torch.Generator().manual_seed(0))
        optimizer.step()
    levels = grids().teacher
    x = noise()
    for i in range(7):
        level = levels[i]
        # guided x0 = oracle + .2 + 3
        x0 = GaussianOracle(mean=0.0).x0(x, level) + 0.2 + 3.0
        x = levels[i + 1].alphas * x0 + levels[i + 1].stds / level.stds * (x - level.alphas * x0)
    velocity = (noise() - x) / (1 - levels[7].sigmas)  # Eq. 6
    wanted = (noise() - velocity - 0.5 * noise()).mean()
    torch.testing.assert_close(network.student[0].detach(), wanted, rtol=1e-4, atol=1e-4)


def test_the_student_descends_to_the_teachers_mean():
    """With an ideal fake score, DMD moves the student's samples onto the teacher's."""
    network = ToyNetwork()
    aim = objective(supervision="last", diversity_weight=0.0)
    optimizer = torch.optim.Adam([network.student], lr=0.02)
    fake_optimizer = torch.optim.Adam([network.fake], lr=0.02)
    before = float(network.student[3].detach())
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        _, x0 = update(network, aim, generator, size=16)
        optimizer.step()
        for _ in range(3):
            fake_update(network, x0, draw_for_fake(grids(), tuple(x0.shape), generator))
            fake_optimizer.step()
            fake_optimizer.zero_grad()
        optimizer.zero_grad()
    # the teacher's guided mean is 3.2 above its unguided zero: the student has to move up
    assert float(network.student[3].detach()) > before + 0.5


def test_the_fake_update_trains_the_fake_alone_on_its_own_prediction():
    network = ToyNetwork()
    levels, aim = grids(), objective()
    supervised = draw_supervised_step(aim, levels, torch.Generator().manual_seed(0))
    x0 = student_samples(network, noise(), supervised, aim, levels)
    draws = draw_for_fake(levels, tuple(x0.shape), torch.Generator().manual_seed(1))
    metrics = fake_update(network, x0, draws)
    assert network.student.grad is None and network.fake.grad is not None
    assert not x0.requires_grad
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 1000, (2,), generator=generator)
    level = grid(network.schedule, torch.arange(1000))[positions]
    alpha, std = level.broadcast_scales
    eps = torch.randn(x0.shape, generator=generator)
    x_t = alpha * x0 + std * eps
    expected = (0.4 * x_t + 0.5 - x0).square().mean()
    torch.testing.assert_close(metrics["fake_loss"], expected.detach())


def test_draws_of_rows_are_those_of_the_whole_batch():
    whole = draw(objective(), grids(), (5, 2, 3, 3), torch.Generator().manual_seed(0))
    part = whole[slice(2, 4)]
    assert torch.equal(part.noise, whole.noise[2:4]) and part.supervised == whole.supervised
    assert torch.equal(part.level.sigmas, whole.level.sigmas[2:4])


@pytest.mark.parametrize("schedule", [s.VPSchedule(), s.FlowSchedule()])
def test_the_dmd_gradient_is_drawn_where_the_schedule_says(schedule):
    levels, low, high = grids(schedule), *schedule.dmd_positions
    shape = (4000, 1, 1, 1)
    draws = draw(objective(), levels, shape, torch.Generator().manual_seed(0))
    assert float(draws.level.sigmas.min()) == float(levels.training[low].sigmas)
    assert float(draws.level.sigmas.max()) == float(levels.training[high].sigmas)
    fake = draw_for_fake(levels, shape, torch.Generator().manual_seed(0))
    assert float(fake.level.sigmas.max()) <= float(levels.training[999].sigmas)
    assert len(fake.level.sigmas.unique()) > len(draws.level.sigmas.unique()) * 0.9


def test_a_teacher_grid_contains_the_students_levels():
    for steps in (3, 4, 8):
        found = Grids.of(s.VPSchedule(), steps, 7 * steps, 7, 1)
        assert torch.equal(found.teacher.sigmas[::7], found.student.sigmas)


def test_each_anchored_step_aims_at_the_teachers_state_where_it_ends():
    found = Grids.of(s.FlowSchedule(), 4, 28, 5, 3)
    assert found.anchor_steps == (5, 14, 21)


def test_the_denoised_target_is_the_teachers_x0_at_the_anchor():
    network, levels = ToyNetwork(), grids(anchor_step=5)
    aim = objective(anchor_target="denoised")
    teacher = denoiser(network, "teacher", aim.teacher_guidance)
    (target,) = anchor_targets(teacher, noise(), aim, levels)
    x, levels = noise(), levels.teacher
    for i in range(5):
        x0 = GaussianOracle(mean=0.0).x0(x, levels[i]) + 3.2
        x = levels[i + 1].alphas * x0 + levels[i + 1].stds / levels[i].stds * (
            x - levels[i].alphas * x0
        )
    expected = GaussianOracle(mean=0.0).x0(x, levels[5]) + 3.2
    torch.testing.assert_close(target(noise()), expected, rtol=1e-4, atol=1e-4)
