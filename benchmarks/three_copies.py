"""The straightforward loop that this project is measured against.

Teacher, student and fake score are three full networks, the student's roll-out is backpropagated
from its second step to its end in one graph, and every fake-score update rolls the student out
anew: the structure of the method's published code. Schedules and predictions are this project's.
Prompts are encoded beforehand on both sides (the published code encodes them at every step).
"""

from __future__ import annotations

import copy
from typing import Any

import mounting  # noqa: F401
import torch
from dpdmd_studio.core.diffusion.prediction import to_x0, training_target
from dpdmd_studio.core.diffusion.schedule import (
    NUM_LEVELS,
    FlowSchedule,
    Levels,
    few_step_positions,
    refine_positions,
)
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.model.network import NetworkCall
from torch import Tensor


class ThreeCopies:
    """Full fine-tuning of a student and a fake score beside a frozen teacher.

    The network of the call becomes the teacher.
    """

    def __init__(
        self,
        call: NetworkCall,
        *,
        num_steps: int,
        anchor: int,
        guidance: float,
        learning_rate: float = 1e-6,
    ) -> None:
        def copied(trainable: bool) -> NetworkCall:
            network = copy.deepcopy(call.network) if trainable else call.network
            network.requires_grad_(trainable)
            return NetworkCall(
                network, call.half, call.prediction, call.schedule, call.device, call.dtype
            )

        self.student, self.fake, self.teacher = copied(True), copied(True), copied(False)
        self.optimizers = {
            role: torch.optim.AdamW(
                network.network.parameters(), lr=learning_rate, weight_decay=0.0
            )
            for role, network in (("student", self.student), ("fake", self.fake))
        }
        self.guidance, self.anchor = guidance, anchor
        positions = few_step_positions(num_steps)
        every = torch.arange(NUM_LEVELS, dtype=torch.float64)
        self.levels, self.teacher_levels, self.training_levels = (
            Levels.at_positions(call.schedule, given).map(lambda t: t.to(call.device))
            for given in (positions, refine_positions(positions, 7), every)
        )
        self.is_flow = isinstance(call.schedule, FlowSchedule)

    def tensors(self) -> list[Tensor]:
        """Everything that is resident between updates."""
        found = [p for n in (self.teacher, self.student, self.fake) for p in n.network.parameters()]
        for optimizer in self.optimizers.values():
            found += [t for s in optimizer.state.values() for t in s.values()]
        return found

    def x0(self, call: NetworkCall, x: Tensor, level: Levels, condition: Conditioning) -> Tensor:
        """A network's conditional x0."""
        alpha, std = level.broadcast_scales
        output = call(x, level.timesteps.expand(len(x)), condition)
        return to_x0(call.prediction, output, x, alpha, std)

    def guided_x0(self, x: Tensor, level: Levels, conditions: Any) -> Tensor:
        """The teacher's guided x0, conditional and unconditional in one batch."""
        timesteps = level.timesteps.expand(len(x)).repeat(2)
        output = self.teacher(torch.cat([x, x]), timesteps, Conditioning.cat(conditions))
        positive, negative = output.chunk(2)
        alpha, std = level.broadcast_scales
        guided = negative + self.guidance * (positive - negative)
        return to_x0(self.teacher.prediction, guided, x, alpha, std)

    def step(self, x: Tensor, x0: Tensor, levels: Levels, i: int) -> Tensor:
        """One deterministic step of a grid."""
        eps = (x - levels.alphas[i] * x0) / levels.stds[i]
        return levels.alphas[i + 1] * x0 + levels.stds[i + 1] * eps

    def student_update(self, noise: Tensor, conditions: Any) -> None:
        """Anchor, roll-out, DMD, one combined backward, one optimizer step."""
        with torch.no_grad():
            z = noise
            for i in range(self.anchor):
                z = self.step(z, self.guided_x0(z, self.teacher_levels[i], conditions),
                              self.teacher_levels, i)  # fmt: skip
            end, start = self.teacher_levels[self.anchor], self.levels[0]
            ratio = end.stds / start.stds
            target = (z - ratio * noise) / (end.alphas - ratio * start.alphas)
        x0 = self.x0(self.student, noise, self.levels[0], conditions[0])
        diversity = ((x0 - target) / self.levels.stds[0]).square().mean()
        x = self.step(noise, x0, self.levels, 0).detach()
        for i in range(1, self.levels.num_steps):
            x = self.step(x, self.x0(self.student, x, self.levels[i], conditions[0]),
                          self.levels, i)  # fmt: skip
        with torch.no_grad():
            low, high = (0, NUM_LEVELS) if self.is_flow else (20, 981)
            level = self.training_levels[torch.randint(low, high, (len(x),)).to(x.device)]
            alpha, std = level.broadcast_scales
            noised = alpha * x + std * torch.randn_like(x)
            real = self.guided_x0(noised, level, conditions)
            fake = self.x0(self.fake, noised, level, conditions[0])
            size = (
                ((noised if self.is_flow else x) - real)
                .abs()
                .mean(dim=(1, 2, 3), keepdim=True)
                .clamp_min(1e-2)
            )
            gradient = (fake - real) / size
        dmd = 0.5 * torch.nn.functional.mse_loss(x, (x - gradient).detach())
        (0.05 * diversity + dmd).backward()
        self.apply("student")

    def fake_update(self, noise: Tensor, conditions: Any) -> None:
        """A fresh roll-out, one denoising loss, one optimizer step."""
        with torch.no_grad():
            x = noise
            for i in range(self.levels.num_steps):
                x = self.step(x, self.x0(self.student, x, self.levels[i], conditions[0]),
                              self.levels, i)  # fmt: skip
        level = self.training_levels[torch.randint(0, NUM_LEVELS, (len(x),)).to(x.device)]
        alpha, std = level.broadcast_scales
        eps = torch.randn_like(x)
        output = self.fake(alpha * x + std * eps, level.timesteps, conditions[0])
        target = training_target(self.fake.prediction, x, eps, alpha, std)
        torch.nn.functional.mse_loss(output, target).backward()
        self.apply("fake")

    def apply(self, role: str) -> None:
        """Clip and step one network."""
        network = self.student if role == "student" else self.fake
        torch.nn.utils.clip_grad_norm_(network.network.parameters(), 1.0)
        self.optimizers[role].step()
        self.optimizers[role].zero_grad(set_to_none=True)
