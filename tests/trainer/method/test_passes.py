"""What an update costs, counted: passes of one image through the network."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import PRESETS, SIZES
from dpdmd_studio.core.diffusion.guidance import NO_GUIDANCE, Guidance
from dpdmd_studio.core.diffusion.schedule import FlowSchedule
from dpdmd_studio.core.families import family
from dpdmd_studio.trainer.method.dp_dmd import fake_update, student_update
from dpdmd_studio.trainer.method.objective import draw, draw_for_fake
from dpdmd_studio.trainer.training.in_force import SettingsInForce

GUIDED = Guidance(7.0)


class Counting:
    """Counts evaluations, those that leave a graph, and backward passes."""

    prediction = "x0"

    def __init__(self):
        self.weights = {role: torch.nn.Parameter(torch.tensor(0.5)) for role in ("student", "fake")}
        self.forwards = self.graphs = self.backwards = 0

    def __call__(self, role, x_t, level, guidance=NO_GUIDANCE):
        self.forwards += 1 if guidance == NO_GUIDANCE else 2
        if role == "teacher":
            return 0.4 * x_t
        self.graphs += torch.is_grad_enabled()
        return self.weights[role] * x_t

    def backward(self, role, loss, weight=1.0):
        self.backwards += 1
        (weight * loss).backward()


def counts(config: DistillConfig) -> tuple[float, float, float]:
    """(forwards, recomputed ones, backwards) of one image and update, means over the draws."""
    settings, shape = SettingsInForce(config, GUIDED), (1, 2, 3, 3)
    grids, aim, found = settings.grids(FlowSchedule()), settings.objective(), {}
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        network, draws = Counting(), draw(aim, grids, shape, generator)
        _, x0 = student_update(network, torch.ones(shape), draws, aim, grids)
        for _ in range(config.fake_updates):
            fake_update(network, x0, draw_for_fake(grids, shape, generator))
        again = network.graphs if config.gradient_checkpointing else 0
        found[draws.supervised] = (network.forwards, again, network.backwards)
    steps = range(min(found), config.num_steps)  # each is drawn as often as the others
    forwards, again, backwards = zip(*(found[step] for step in steps), strict=True)
    return mean(forwards), mean(again), mean(backwards)


def prediction_of(name: str) -> str:
    """What models of a family predict, or that of another size of one."""
    return family("sd3" if name in SIZES else name).sampling.predictions[0]


@pytest.mark.parametrize("name", PRESETS | SIZES)
def test_a_preset_of_16_gb_costs_at_most_22_forwards_an_image_and_31_of_a_flow(name):
    config = DistillConfig(**(PRESETS | SIZES)[name]["16gb"])
    flow = prediction_of(name) == "flow"
    total = sum(counts(config.anchored_for(prediction_of(name))))
    assert (22 < total <= 31) if flow else total <= 22
    assert config.batch_size >= 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"teacher_steps": 28, "fake_updates": 5}, (25, 0, 7)),
        ({"teacher_steps": 28, "fake_updates": 5, "gradient_checkpointing": True}, (25, 7, 7)),
        ({"teacher_steps": 8, "fake_updates": 5}, (15, 0, 7)),
        ({"teacher_steps": 12, "fake_updates": 2, "real_guidance": 1.0}, (13, 0, 4)),
        ({"teacher_steps": 16, "fake_updates": 2, "num_anchored_steps": 2,
          "gradient_steps": "last"}, (25, 0, 5)),
    ],
)  # fmt: skip
def test_passes_of_an_update(settings, expected):
    assert counts(DistillConfig(**settings)) == expected
