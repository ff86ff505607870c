"""Anchored sampling: the base model samples the first part of a few-step trajectory.

A few-step student decides the layout of an image in its first step, and that is where distilled
models lose their diversity (arXiv:2503.10637; arXiv:2602.03139, section 4). So the base model
samples from pure noise to the level where the student's first step ends, in K small guided steps or
in one plain step, and the student goes on from there on its own grid. It works with any few-step
LoRA.

The handover. The student takes over at its level s_1 in the state z_K the base model reached,

    z_0 = start,   z_{k+1} = x0_k + (sigma_{k+1} / sigma_k) (z_k - x0_k),   sigma_K = s_1,

for both solvers. An "sde" student, which sees fresh noise after each of its own steps, could also
be given x0_{K-1} with fresh noise. But x0_{K-1} is the mean of all images that z_{K-1} may
become, and their variance would be lost. For Gaussian data of variance P on a VP schedule (in the
k-diffusion convention, where the state at s has variance P + s^2) one plain step from s_0 leaves
z_1 short of that by P (s_0 - s_1)^2 / (P + s_0^2), the re-noised mean by P s_0^2 / (P + s_0^2),
which is more for every P; z_K of many steps falls short by nothing. So fresh noise comes in with
the student's own first step, not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..diffusion.sampler import Denoiser, NoiseSampler, sample_few_step
from ..diffusion.schedule import FlowSchedule, Schedule
from ..errors import SettingsError
from ..families import family
from .few_step import Plan, counted, schedule_of
from .recipe import Recipe

# The teacher's grid is the student's with every step divided by this, as in training: 4 steps to 28
ANCHOR_DIVISION = 7
MAX_ANCHOR_STEPS = 200
GUIDED, ONE_PLAIN = "guided steps", "one plain step"  # what the base model does
UNKNOWN_OBJECTIVE = "unknown"  # of recipes that were made up for a LoRA without one


@dataclass(frozen=True)
class AnchoredPlan:
    """Both parts of a trajectory.

    Attributes:
        base_sigmas: the base model's K + 1 levels; the last is the student's first.
        student_sigmas: the student's levels, down to 0.
        base_guidance: guidance of the base model's steps.
        guidance_scale: guidance of the student's steps.
        solver: the student's, "ode" or "sde".
        flow: whether the model is a flow, which decides how fresh noise is added.
        notes: what a user has to see.
    """

    base_sigmas: Tensor
    student_sigmas: Tensor
    base_guidance: float
    guidance_scale: float
    solver: str
    flow: bool
    notes: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Steps of both parts together."""
        return len(self.base_sigmas) + len(self.student_sigmas) - 2

    @property
    def num_evaluations(self) -> int:
        """Network evaluations for one image; a guided step is two."""
        base = (len(self.base_sigmas) - 1) * evaluations_per_step(self.base_guidance)
        return base + (len(self.student_sigmas) - 1) * evaluations_per_step(self.guidance_scale)

    def describe(self) -> str:
        """Lines for people: both parts, then the notes."""
        base, few = len(self.base_sigmas) - 1, len(self.student_sigmas) - 1
        kind = ", re-noising" if self.solver == "sde" else ""
        lines = (
            f"Base model: {counted(base, 'step')} at CFG {self.base_guidance:g}, noise levels "
            f"{_level(self.base_sigmas[0])} to {_level(self.base_sigmas[-1])}.",
            f"Few-step model: {counted(few, 'step')} at CFG {self.guidance_scale:g}{kind}, noise "
            f"levels {' '.join(map(_level, self.student_sigmas))}.",
            f"{self.num_evaluations} network evaluations.",
        )
        return "\n".join((*lines, *self.notes))


def _level(sigma: Tensor) -> str:
    return f"{float(sigma):.3g}"


def evaluations_per_step(guidance_scale: float) -> int:
    """1 where guidance is off (1.0), otherwise 2."""
    return 1 if guidance_scale == 1.0 else 2


@dataclass(frozen=True)
class AskedAnchor:
    """What the user asks of the base model's part.

    Attributes:
        way: `GUIDED`, several guided steps, or `ONE_PLAIN`, one step, unguided if nothing is said.
        steps: K, the number of equal parts, in position, of the step the base model takes, where
            it is guided; 0 is as many as in training, 7 where that is not known.
        guidance: of the base model; None is the teacher's of the recipe, and the family's usual
            one where the student's teacher is not known.
        solver: of the student; "auto" is the recipe's.
    """

    way: str = GUIDED
    steps: int = 0
    guidance: float | None = None
    solver: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= MAX_ANCHOR_STEPS:
            raise SettingsError(
                f"{self.steps} anchor steps were asked for; expected 1 to {MAX_ANCHOR_STEPS}, or 0 "
                "for as many as in training."
            )
        if self.guidance is not None and not 0 < self.guidance <= 1000:
            raise SettingsError(
                f"The base model's guidance is {self.guidance:g}; expected more than 0, 1 for off."
            )
        if self.solver not in ("auto", "ode", "sde"):
            raise SettingsError(f"The solver is {self.solver!r}; expected auto, ode or sde.")

    @property
    def count(self) -> int:
        """Steps of the base model; 0 is as many as in training."""
        return 1 if self.way == ONE_PLAIN else self.steps

    def guidance_for(self, recipe: Recipe) -> float:
        """Guidance of the base model's steps."""
        if self.guidance is not None:
            return self.guidance
        if self.way == ONE_PLAIN:
            return 1.0
        if recipe.objective == UNKNOWN_OBJECTIVE:  # a student of another trainer
            return family(recipe.family).sampling.guidance_scale
        return recipe.teacher_guidance_scale


def anchored_plan(
    recipe: Recipe, few_step: Plan, asked: AskedAnchor = AskedAnchor()
) -> AnchoredPlan:
    """The levels of the base model and those of the student.

    Args:
        recipe: the student's.
        few_step: the student's plan alone, whose first step the base model takes.

    Raises:
        SettingsError: nothing would be left for the student.
    """
    sigmas = few_step.sigmas
    if len(sigmas) < 3:
        raise SettingsError(
            f"{len(sigmas) - 1} step is left of the few-step grid, and the base model takes the "
            "first: nothing would be left for the few-step model. Expected 2 steps or more: raise "
            "steps, or denoise."
        )
    parts = asked.count or trained_anchor_steps(recipe, float(sigmas[1]))
    return AnchoredPlan(
        base_sigmas=divided_step(schedule_of(recipe), sigmas[:2], parts),
        student_sigmas=sigmas[1:],
        base_guidance=asked.guidance_for(recipe),
        guidance_scale=few_step.guidance_scale,
        solver=few_step.solver if asked.solver == "auto" else asked.solver,
        flow=recipe.prediction == "flow",
        notes=few_step.notes,
    )


def trained_anchor_steps(recipe: Recipe, end_sigma: float) -> int:
    """K of the training if its anchor lies at the end of the student's first step, otherwise 7."""
    anchor = recipe.anchor
    if anchor is not None and abs(anchor.sigma - end_sigma) <= 1e-3 * max(1.0, end_sigma):
        return anchor.steps
    return ANCHOR_DIVISION


def divided_step(schedule: Schedule, ends: Tensor, parts: int) -> Tensor:
    """Levels that divide one step into `parts` equal ones, in position; both ends stay exact.

    Args:
        ends: the step's start and end, shape (2,).

    Returns:
        Decreasing levels, shape (parts + 1,), on the device and in the type of `ends`.
    """
    start, end = position_at(schedule, ends)
    inner = torch.linspace(float(start), float(end), parts + 1, dtype=torch.float64)[1:-1]
    levels = schedule.sigma_at(inner).to(ends)
    return torch.cat([ends[:1], levels, ends[1:]])


def position_at(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """The position, 999 for pure noise, of every level; float64 on the CPU."""
    sigmas = sigmas.cpu().double()
    if isinstance(schedule, FlowSchedule):
        time = sigmas / (schedule.shift - (schedule.shift - 1) * sigmas)
        return time * 1000 - 1
    return schedule.timestep_at(sigmas).double()


class AnchoredTrajectory:
    """The two parts as samplers in the k-diffusion contract, for hosts that sample with one model.

    The state passes from one to the other inside this object, as it is: a host would scale, round
    and noise it again between two of its own sampling calls. `sigmas` are the plan's of that part,
    and what hosts hand to samplers besides goes on to `sample_few_step` as it is.
    """

    def __init__(self, plan: AnchoredPlan) -> None:
        self.plan = plan
        self.anchor: Tensor | None = None

    def base_part(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        """The state z_K at the end of the base model's part, which is kept, shape (B, C, H, W)."""
        self.anchor = sample_few_step(model, x, sigmas, *rest, **named)
        return self.anchor

    def student_part(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *rest: Any,
        noise_sampler: NoiseSampler | None = None,
        **named: Any,
    ) -> Tensor:
        """The sample, shape (B, C, H, W), from where the base model's part ended; `x` is not used.

        Args:
            noise_sampler: fresh noise for an "sde" plan; see `sample_few_step`.
        """
        assert self.anchor is not None, "the base model's part comes first"
        start = self.anchor.to(x)
        self.anchor = None
        return sample_few_step(
            model,
            start,
            sigmas,
            *rest,
            **named,
            solver=self.plan.solver,
            noise_sampler=noise_sampler,
            flow=self.plan.flow,
        )
