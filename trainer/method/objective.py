"""What is optimised and at which sigmas or timesteps: the method's settings as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Generator, Tensor, arange, float64, randint, randn

from ...core.diffusion.guidance import NO_GUIDANCE, Guidance
from ...core.diffusion.schedule import (
    NUM_LEVELS,
    Levels,
    Schedule,
    few_step_positions,
    refine_positions,
    trailing_positions,
)

Variant = Literal["dp_dmd", "dmd", "no_detach", "detach_only"]
Supervision = Literal["random", "last", "all"]
AnchorTarget = Literal["chord", "denoised"]
EVERYWHERE = (0.0, 1000.0)
"""The guidance interval that holds every timestep."""


@dataclass(frozen=True)
class Objective:
    """The student's objective, L = L_DMD + lambda * L_div (arXiv:2602.03139, Eq. 8).

    Attributes:
        teacher_guidance: of the anchor.
        real_guidance: of the DMD real score; None is the anchor's.
        guidance_interval: the least and the most timestep, 0 to 1000, at which the real score is
            guided (arXiv:2404.07724); guidance at high noise drives DMD's collapse
            (arXiv:2604.04018).
        renoise_from: where the levels that samples are re-noised to begin, as a share of their
            range; above 0 only high noise is drawn.
        diversity_weight: lambda.
        num_anchored_steps: m, the first steps that learn by target prediction; the paper has one.
        anchor_target: "chord", the straight line from the noise to the anchor (Eq. 6), or
            "denoised", the teacher's x0 at the anchor (Appendix C).
        supervision: which steps the DMD gradient trains: one random step of those that it may
            reach, the last, or all of them.
        variant: "dp_dmd" is the method; the others switch parts off, for comparison alone.
    """

    teacher_guidance: Guidance = NO_GUIDANCE
    real_guidance: Guidance | None = None
    guidance_interval: tuple[float, float] = EVERYWHERE
    renoise_from: float = 0.0
    diversity_weight: float = 0.05
    num_anchored_steps: int = 1
    anchor_target: AnchorTarget = "chord"
    supervision: Supervision = "random"
    variant: Variant = "dp_dmd"

    @property
    def anchors(self) -> bool:
        """Whether the first m steps learn by target prediction."""
        return self.variant in ("dp_dmd", "no_detach")

    @property
    def first_dmd_step(self) -> int:
        """The first student step that the DMD gradient may reach: it is blocked before m."""
        return self.num_anchored_steps if self.variant in ("dp_dmd", "detach_only") else 0

    @property
    def rollout_start(self) -> int:
        """The step at which the DMD roll-out begins: after the anchored ones, else at the noise."""
        return self.num_anchored_steps if self.variant == "dp_dmd" else 0


@dataclass(frozen=True)
class Grids:
    """Noise levels of a run.

    Attributes:
        student: the N steps, N + 1 levels.
        teacher: its own steps, from the same start.
        training: all 1000 levels, by position.
        anchor_steps: teacher steps at which its states are what steps 1..m aim at; the first is K.
        schedule: where they come from.
    """

    student: Levels
    teacher: Levels
    training: Levels
    anchor_steps: tuple[int, ...]
    schedule: Schedule

    @classmethod
    def of(
        cls, schedule: Schedule, num_steps: int, teacher_steps: int, anchor_step: int, anchored: int
    ) -> Grids:
        """The grids of `num_steps` student steps; anchors at K = `anchor_step` and each step's end.

        The teacher's grid is the student's, refined, where the steps divide evenly.
        """
        positions = few_step_positions(num_steps)
        per_step = teacher_steps // num_steps
        if teacher_steps % num_steps == 0:
            teacher_positions = refine_positions(positions, per_step)
        else:
            teacher_positions = trailing_positions(teacher_steps)
        return cls(
            student=Levels.at_positions(schedule, positions),
            teacher=Levels.at_positions(schedule, teacher_positions),
            training=Levels.at_positions(schedule, arange(NUM_LEVELS, dtype=float64)),
            anchor_steps=(anchor_step, *(per_step * i for i in range(2, anchored + 1))),
            schedule=schedule,
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Grids:
        """The student's and teacher's grids with each tensor changed, such as moved to a device.

        The training levels stay: drawn ones move with the draws.
        """
        return Grids(
            self.student.map(change), self.teacher.map(change), self.training, self.anchor_steps,
            self.schedule,
        )  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """The random numbers of one update of B images.

    Attributes:
        supervised: the DMD-supervised step, from 0; the last unless it is drawn.
        level: the noise levels that the images are re-noised to, each of shape (B,).
        noise: the noise they get, (B, C, H, W).
        guided: whether the real score is guided there, of each image. It is known on the CPU, so
            that nobody waits for a device to say how many evaluations there are.
    """

    supervised: int
    level: Levels
    noise: Tensor
    guided: tuple[bool, ...] = ()

    def __getitem__(self, rows: slice) -> Draws:
        """The draws of those rows: a micro-batch has those that it has in the whole batch."""
        level = self.level.map(lambda t: t[rows])
        return Draws(self.supervised, level, self.noise[rows], self.guided[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """Each tensor changed, such as moved to a device."""
        return replace(self, level=self.level.map(change), noise=change(self.noise))


def draw_supervised_step(objective: Objective, grids: Grids, generator: Generator) -> int:
    """The DMD-supervised step of one roll-out, from 0."""
    last = grids.student.num_steps - 1
    if objective.supervision != "random":
        return last
    return int(randint(objective.first_dmd_step, last + 1, (), generator=generator))


def draw(objective: Objective, grids: Grids, shape: tuple[int, ...], generator: Generator) -> Draws:
    """The draws of a student update of latents of `shape`, (B, C, H, W)."""
    supervised = draw_supervised_step(objective, grids, generator)
    low, high = grids.schedule.dmd_positions
    low += round(objective.renoise_from * (high - low))
    drawn = _renoising(supervised, grids, (low, high), shape, generator)
    return replace(drawn, guided=_inside(drawn.level, objective.guidance_interval))


def _inside(level: Levels, interval: tuple[float, float]) -> tuple[bool, ...]:
    """Whether each timestep lies in the interval, its ends included."""
    count = len(level.timesteps)
    if interval == EVERYWHERE:
        return (True,) * count  # without reading the numbers
    least, most = interval
    return tuple(least <= timestep <= most for timestep in level.timesteps.tolist())


def draw_for_fake(grids: Grids, shape: tuple[int, ...], generator: Generator) -> Draws:
    """The draws of a fake-score update of latents of `shape`, over all training levels."""
    return _renoising(grids.student.num_steps - 1, grids, (0, NUM_LEVELS - 1), shape, generator)


def _renoising(
    supervised: int, grids: Grids, between: tuple[int, int], shape: tuple[int, ...],
    generator: Generator,
) -> Draws:  # fmt: skip
    low, high = between
    positions = randint(low, high + 1, (shape[0],), generator=generator)
    noise = randn(shape, generator=generator)
    return Draws(supervised, grids.training[positions], noise)
