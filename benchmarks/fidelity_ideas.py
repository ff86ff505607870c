"""Ideas beyond the paper, tried on the embedded teachers; what came of them is in docs/fidelity.md.

Each replaces the project's distiller or update loop by a variant of it for the runs of
`fidelity.py --idea NAME`. None costs anything when a picture is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import mounting  # noqa: F401  (makes dpdmd_studio importable)
import torch
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions, refine_positions
from dpdmd_studio.trainer.evaluation.evaluate import ArmSetting, Leg, Painter
from dpdmd_studio.trainer.method.distiller import Batch, Distiller
from dpdmd_studio.trainer.training import session as sessions
from dpdmd_studio.trainer.training.loop import Trainer
from torch import Tensor, nn

PULL = 0.03
"""Share of the student in the fake score after each student update (arXiv:2506.00523, IDA)."""
Arms = list[ArmSetting]
Adapt = Callable[[Painter, Arms, "sessions.Session"], tuple[Painter, Arms]]


def unchanged(painter: Painter, arms: Arms, session: sessions.Session) -> tuple[Painter, Arms]:
    """The student is a plain LoRA: drawn like any other."""
    return painter, arms


class PullingTrainer(Trainer):
    """The fake score begins as the student and is pulled towards it after each student update."""

    def _update_average(self, step: int) -> None:
        super()._update_average(step)
        pairs = zip(self.roles.parameters("fake"), self.roles.parameters("student"), strict=True)
        with torch.no_grad():
            for fake, student in pairs:
                if step == 1:
                    fake.copy_(student)
                fake.lerp_(student, PULL)


class RandomGridDistiller(Distiller):
    """Every update has a student grid of its own: interior levels anywhere up to halfway between
    the neighbours of the final grid; pure noise and the end stay (arXiv:2605.06376)."""

    def student_update(self, batch: Batch, generator: torch.Generator):
        fixed = (self.levels, self.teacher_levels)
        positions = few_step_positions(self.config.num_steps)
        inner = positions[1:-1]
        draw = torch.rand(len(inner), generator=generator, dtype=positions.dtype)
        low, high = (inner + positions[2:]) / 2, (inner + positions[:-2]) / 2
        positions = torch.cat([positions[:1], low + draw * (high - low), positions[-1:]])
        parts = self.config.effective_teacher_steps // self.config.num_steps
        schedule, device = self.network.schedule, self.network.device
        self.levels = Levels.at_positions(schedule, positions).to(device)
        refined = refine_positions(positions, parts)
        self.teacher_levels = Levels.at_positions(schedule, refined).to(device)
        try:
            return super().student_update(batch, generator)
        finally:
            self.levels, self.teacher_levels = fixed


class RoutedDistiller(Distiller):
    """Two halves of the ranks, both always on: L_div trains one, matching the other.

    They merge exactly into one plain LoRA.
    """

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self._anchoring = False
        for name, parameter in self.roles.named_parameters("student"):
            first = first_half(parameter, name)
            parameter.register_hook(lambda grad, first=first: grad * self._share(first))

    def _share(self, first: Tensor) -> Tensor:
        return first if self._anchoring else 1 - first

    def _anchored_steps(self, batch: Batch):
        self._anchoring = True
        try:
            return super()._anchored_steps(batch)
        finally:
            self._anchoring = False


class SwitchedDistiller(Distiller):
    """Two halves of the ranks: one is on at the first step only, the other at the later ones.

    The sampler has to switch; the two are two LoRA files.
    """

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.switch = RankSwitch(self.network.network)

    def denoise_as(self, role: str, batch: Batch, x_t: Tensor, level: Levels) -> Tensor:
        if role == "student":
            self.switch.first = bool((level.sigmas == self.levels.sigmas[0]).all())
        return super().denoise_as(role, batch, x_t, level)


class RankSwitch:
    """Masks the student's ranks to one half by hooks on its down layers."""

    def __init__(self, network: nn.Module) -> None:
        self.first = True
        for name, module in network.named_modules():
            if name.endswith("lora_A.student"):
                module.register_forward_hook(self._mask)

    def _mask(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        mask = first_half(weight, "lora_A").flatten()
        mask = mask if self.first else 1 - mask
        return output * (mask[:, None, None] if weight.ndim == 4 else mask)


def first_half(parameter: Tensor, name: str) -> Tensor:
    """Ones at the first half of the ranks, zeros at the rest; broadcasts against the parameter."""
    along = 0 if name.endswith("lora_A") else 1
    rank = parameter.shape[along]
    mask = (torch.arange(rank) < rank // 2).float()
    return mask.reshape([-1 if axis == along else 1 for axis in range(parameter.ndim)])


def switching(painter: Painter, arms: Arms, session: sessions.Session) -> tuple[Painter, Arms]:
    """The student's first step is drawn by the first half, the others by the second."""
    distiller = session.trainer.distiller
    assert isinstance(distiller, SwitchedDistiller)
    plain = painter.use

    def use(weights: str) -> None:
        distiller.switch.first = weights == "student-first"
        plain("teacher" if weights == "teacher" else "student")

    few = distiller.levels.sigmas.cpu()
    legs = (Leg(weights="student-first", sigmas=few[:2]), Leg(weights="student", sigmas=few[1:]))
    student = ArmSetting(name=arms[-1].name, note=arms[-1].note, legs=legs)
    return dataclasses.replace(painter, use=use), [*arms[:-1], student]


def _with(part: str, variant: type, adapt: Adapt = unchanged) -> Callable[[], Adapt]:
    def install() -> Adapt:
        setattr(sessions, part, variant)
        return adapt

    return install


IDEAS: dict[str, Callable[[], Adapt]] = {
    "none": lambda: unchanged,
    "pulled-fake": _with("Trainer", PullingTrainer),
    "random-grid": _with("Distiller", RandomGridDistiller),
    "routed-halves": _with("Distiller", RoutedDistiller),
    "switched-halves": _with("Distiller", SwitchedDistiller, switching),
}
