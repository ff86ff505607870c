"""Gradient routing of DP-DMD, shown on a network with one student weight per step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.diffusion import schedule as s
from dpdmd_studio.trainer.method.distiller import Batch, Distiller
from oracle import GaussianOracle, grid


class PairedCondition:
    """Stands for conditioning: a per-sample number, 1 for the prompt and 0 for the negative."""

    def __init__(self, values):
        self.values = values

    def batches_exactly_with(self, other):
        return True

    @classmethod
    def cat(cls, parts):
        return cls(torch.cat([part.values for part in parts]))


class ToyNetwork:
    """x0 prediction; role student: one weight per grid step; teacher: a Gaussian, by condition."""

    prediction = "x0"
    device = torch.device("cpu")

    def __init__(self, schedule=None):
        self.schedule = schedule or s.FlowSchedule()
        self.role, self.calls = "teacher", []
        positions = s.few_step_positions(4)[:-1]
        self.grid = grid(self.schedule, positions).timesteps
        self.student = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.fake = torch.nn.Parameter(torch.tensor(0.5))

    def use(self, role):
        self.role = role

    def __call__(self, x_t, timesteps, conditioning):
        self.calls.append((self.role, len(x_t)))
        if self.role == "student":
            step = int((self.grid - timesteps[0]).abs().argmin())
            return 0.5 * x_t + self.student[step]
        if self.role == "fake":
            return 0.4 * x_t + self.fake
        level = s.Levels.at_sigmas(self.schedule, timesteps / 1000)
        means = 0.2 + conditioning.values.reshape(-1, 1, 1, 1)
        return GaussianOracle(mean=0.0).x0(x_t, level) + means


def distiller(network, **settings):
    config = DistillConfig(**{"gradient_steps": "all", **settings}).validate()
    return Distiller(network, network, config, teacher_guidance=3.0)


def batch(size=2):
    noise = torch.randn(size, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    return Batch(noise, PairedCondition(torch.ones(size)), PairedCondition(torch.zeros(size)))


def student_gradient(objective="dp_dmd", seed=0, **settings):
    network = ToyNetwork()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(seed)
    distiller(network, objective=objective, **settings).student_update(batch(), generator)
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


@pytest.mark.parametrize("gradient_steps", ["random", "last", "all"])
@pytest.mark.parametrize("anchored", [1, 2, 3])
def test_matching_never_reaches_anchored_steps(gradient_steps, anchored):
    for seed in range(6):
        gradient = student_gradient(
            seed=seed,
            diversity_weight=0.0,
            gradient_steps=gradient_steps,
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
    gradient = student_gradient(diversity_weight=0.0, gradient_steps="last")
    assert (gradient[:3] == 0).all() and gradient[3] != 0


def test_random_supervises_one_matched_step_and_visits_all():
    visited = set()
    for seed in range(20):
        gradient = student_gradient(seed=seed, diversity_weight=0.0, gradient_steps="random")
        (step,) = gradient.nonzero().flatten().tolist()
        visited.add(step)
    assert visited == {1, 2, 3}


def test_the_first_step_descends_to_the_teachers_chord():
    network = ToyNetwork()
    teacher = distiller(network, diversity_weight=1.0)
    optimizer = torch.optim.SGD([network.student], lr=0.3)
    for _step in range(200):
        optimizer.zero_grad()
        teacher._anchored_steps(batch())
        optimizer.step()
    levels = teacher.teacher_levels
    x = batch().noise
    for i in range(7):
        level = levels[i]
        # guided x0 = oracle + .2 + 3 * 1
        x0 = GaussianOracle(mean=0.0).x0(x, level) + 0.2 + 3.0
        x = levels[i + 1].alphas * x0 + levels[i + 1].stds / level.stds * (x - level.alphas * x0)
    velocity = (batch().noise - x) / (1 - levels[7].sigmas)  # Eq. 6
    wanted = (batch().noise - velocity - 0.5 * batch().noise).mean()
    torch.testing.assert_close(network.student[0].detach(), wanted, rtol=1e-4, atol=1e-4)


def test_the_student_descends_to_the_teachers_mean():
    """With an ideal fake score, DMD moves the student's samples onto the teacher's."""
    network = ToyNetwork()
    trainer = distiller(network, gradient_steps="last", diversity_weight=0.0)
    optimizer = torch.optim.Adam([network.student], lr=0.02)
    fake_optimizer = torch.optim.Adam([network.fake], lr=0.02)
    before = float(network.student[3].detach())
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        _, samples = trainer.student_update(batch(16), generator)
        optimizer.step()
        for _ in range(3):
            trainer.fake_update(samples, generator)
            fake_optimizer.step()
            fake_optimizer.zero_grad()
        optimizer.zero_grad()
    # the teacher's guided mean is 3.2 above its unguided zero: the student has to move up
    assert float(network.student[3].detach()) > before + 0.5


def test_the_fake_update_trains_the_fake_alone_on_its_own_prediction():
    network = ToyNetwork()
    trainer = distiller(network)
    samples = trainer.draw_samples(batch(), torch.Generator().manual_seed(0))
    metrics = trainer.fake_update(samples, torch.Generator().manual_seed(1))
    assert network.student.grad is None and network.fake.grad is not None
    assert not samples.x0.requires_grad
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 1000, (2,), generator=generator)
    level = grid(network.schedule, torch.arange(1000))[positions]
    alpha, std = level.broadcast_scales
    eps = torch.randn(samples.x0.shape, generator=generator)
    x_t = alpha * samples.x0 + std * eps
    expected = (0.4 * x_t + 0.5 - samples.x0).square().mean()
    torch.testing.assert_close(metrics["fake_loss"], expected.detach())


def test_the_teacher_is_guided_in_one_pass_and_the_fake_is_conditional():
    network = ToyNetwork()
    trainer = distiller(network)
    level = trainer.levels[1]
    x_t = batch().noise
    network.calls.clear()
    guided = trainer.denoise_as("teacher", batch(), x_t, level)
    assert network.calls == [("teacher", 4)]
    # uncond + 3 * (cond - uncond): the condition adds one, so guidance adds three
    expected = GaussianOracle(mean=0.0).x0(x_t, level) + 0.2 + 3.0
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    trainer.denoise_as("fake", batch(), x_t, level)
    assert network.calls[-1] == ("fake", 2)


def test_a_teacher_grid_contains_the_students_levels():
    for steps in (3, 4, 8):
        trainer = Distiller(
            SimpleNamespace(schedule=s.VPSchedule(), prediction="eps", device=torch.device("cpu")),
            SimpleNamespace(),
            DistillConfig(num_steps=steps).validate(),
            7.0,
        )
        assert torch.equal(trainer.teacher_levels.sigmas[::7], trainer.levels.sigmas)


def test_the_denoised_target_is_the_teachers_x0_at_the_anchor():
    network = ToyNetwork()
    trainer = distiller(network, anchor_target="denoised", anchor_step=5)
    (target,) = trainer._anchor_targets(batch())
    levels = trainer.teacher_levels
    x = batch().noise
    for i in range(5):
        x0 = GaussianOracle(mean=0.0).x0(x, levels[i]) + 3.2
        x = levels[i + 1].alphas * x0 + levels[i + 1].stds / levels[i].stds * (
            x - levels[i].alphas * x0
        )
    expected = GaussianOracle(mean=0.0).x0(x, levels[5]) + 3.2
    torch.testing.assert_close(target(batch().noise), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_scale_multiplies_every_gradient():
    def gradients(scale):
        network = ToyNetwork()
        trainer = distiller(network, diversity_weight=1.0)
        trainer.loss_scale = scale
        _, samples = trainer.student_update(batch(), torch.Generator().manual_seed(0))
        trainer.fake_update(samples, torch.Generator().manual_seed(1))
        return torch.cat([network.student.grad, network.fake.grad.reshape(1)])

    torch.testing.assert_close(gradients(4096.0), 4096.0 * gradients(1.0))


def test_prompts_that_do_not_batch_exactly_are_predicted_apart():
    class Unequal(PairedCondition):
        def batches_exactly_with(self, other):
            return False

    network = ToyNetwork()
    trainer = distiller(network)
    apart = Batch(batch().noise, Unequal(torch.ones(2)), Unequal(torch.zeros(2)))
    level = trainer.levels[1]
    together = trainer.denoise_as("teacher", batch(), apart.noise, level)
    network.calls.clear()
    torch.testing.assert_close(trainer.denoise_as("teacher", apart, apart.noise, level), together)
    assert network.calls == [("teacher", 2), ("teacher", 2)]
