"""The network in three roles: guidance in one pass, and what a backward belongs to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.trainer.model.conditioning import PromptPair
from dpdmd_studio.trainer.model.loss_scale import LossScale
from dpdmd_studio.trainer.model.roles import RoleNetwork


class Prompt:
    """Stands for conditioning: a per-sample number, 1 for the prompt and 0 for the negative."""

    def __init__(self, values, *, batches=True):
        self.values, self.batches = values, batches

    def batches_exactly_with(self, other):
        return self.batches

    @classmethod
    def cat(cls, parts):
        return cls(torch.cat([part.values for part in parts]))


class Call:
    """Predicts x_t times a weight, plus the prompt's number."""

    prediction = "x0"

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.calls = []
        self.role = "teacher"

    def use(self, role):
        self.role = role

    def __call__(self, x_t, timesteps, conditioning):
        self.calls.append((self.role, len(x_t)))
        assert timesteps.shape == (len(x_t),)
        return self.weight * x_t + conditioning.values.reshape(-1, 1, 1, 1)


def bound(call, size=2, *, batches=True, scale=1.0, of=None):
    scales = {} if scale == 1.0 else {"student": LossScale(scale)}
    prompts = PromptPair(
        Prompt(torch.ones(size), batches=batches),
        Prompt(torch.zeros(size)),  # type: ignore[arg-type]
    )
    return RoleNetwork(call, call, scales).bound(prompts, size, of=of or size)  # type: ignore[arg-type]


LEVEL = SimpleNamespace(timesteps=torch.tensor(500.0))


@pytest.fixture
def x_t():
    return torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_the_teacher_is_guided_in_one_pass_and_the_fake_is_conditional(x_t):
    call = Call()
    network = bound(call)
    guided = network("teacher", x_t, LEVEL, Guidance(3.0))
    assert call.calls == [("teacher", 4)]
    # uncond + 3 * (cond - uncond): the condition adds one, so guidance adds three
    torch.testing.assert_close(guided, 0.5 * x_t + 3.0)
    torch.testing.assert_close(network("fake", x_t, LEVEL), 0.5 * x_t + 1.0)
    assert call.calls[-1] == ("fake", 2)


def test_prompts_that_do_not_batch_exactly_are_predicted_apart(x_t):
    call = Call()
    together = bound(Call())("teacher", x_t, LEVEL, Guidance(3.0))
    apart = bound(call, batches=False)("teacher", x_t, LEVEL, Guidance(3.0))
    torch.testing.assert_close(apart, together)
    assert call.calls == [("teacher", 2), ("teacher", 2)]


def test_rescaling_brings_the_result_to_the_conditionals_contrast(x_t):
    guided = bound(Call())("teacher", x_t, LEVEL, Guidance(3.0, rescale=1.0))
    contrast = (0.5 * x_t + 1.0).std(dim=(1, 2, 3))
    torch.testing.assert_close(guided.std(dim=(1, 2, 3)), contrast)


@pytest.mark.parametrize(
    ("scale", "of", "weight"), [(4096.0, 2, 1.0), (1.0, 8, 1.0), (1.0, 2, 0.05)]
)
def test_losses_are_scaled_and_count_by_their_share_of_the_batch(x_t, scale, of, weight):
    def gradient(**settings):
        call = Call()
        network = bound(call, **settings)
        loss = network("student", x_t, LEVEL).square().mean()
        network.backward("student", loss, weight if settings else 1.0)
        return call.weight.grad

    torch.testing.assert_close(gradient(scale=scale, of=of), scale * weight * 2 / of * gradient())


def test_a_backward_has_its_role_active():
    """Gradient checkpointing runs the forward again, and PEFT looks at the active adapter."""
    call = Call()
    network = bound(call)
    loss = network("student", torch.ones(2, 2, 3, 3), LEVEL).sum()
    network("teacher", torch.ones(2, 2, 3, 3), LEVEL)
    network.backward("student", loss)
    assert call.role == "student"
