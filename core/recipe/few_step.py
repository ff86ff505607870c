"""What to sample with: a recipe, what the user asks for, and the noise levels that follow.

A student is right at the levels it was trained at. So other numbers of steps keep the spacing of
its grid, image to image starts at one of its levels, and whatever differs is said in a note.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.sampler import partial_sigmas, sigmas_from
from ..diffusion.schedule import (
    FlowSchedule,
    Levels,
    Schedule,
    VPSchedule,
    few_step_positions,
)
from ..errors import SettingsError
from ..families import FAMILY_LABELS, Family
from ..families import family as facts_of
from .recipe import MAX_STEPS, Recipe, is_plain_grid

SAME_LEVEL = 1e-3
"""Levels whose ratio differs from 1 by less are one level."""


@dataclass(frozen=True)
class Plan:
    """Noise levels of shape (N + 1,), guidance, solver, and what a user should know of them.

    Each note is a sentence or two.
    """

    sigmas: Tensor
    guidance_scale: float = 1.0
    solver: str = "ode"
    notes: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """All notes, a line each; "" for none."""
        return "\n".join(self.notes)

    @property
    def num_steps(self) -> int:
        """Network evaluations at guidance 1."""
        return len(self.sigmas) - 1

    def describe(self) -> str:
        """One line, and the note below it."""
        levels = " ".join(f"{sigma:.3g}" for sigma in self.sigmas.tolist())
        steps = counted(self.num_steps, "step")
        kind = ", re-noising" if self.solver == "sde" else ""
        line = f"{steps}, CFG {self.guidance_scale:g}{kind}, noise levels {levels}"
        return f"{line}\n{self.note}" if self.note else line


def make_schedule(flow: bool, shift: float | None, zero_terminal_snr: bool) -> Schedule:
    """A flow schedule of that shift (None: no shift), or the VP schedule."""
    return FlowSchedule(shift or 1.0) if flow else VPSchedule(zero_terminal_snr)


def family_schedule(
    family: Family,
    zero_terminal_snr: bool = False,
    *,
    prediction: str = "",
    shift: float | None = None,
) -> Schedule:
    """The noise schedule that a family's models were trained with.

    Args:
        prediction: what the model predicts; "" is what is usual.
        shift: of a flow; None is the family's.
    """
    sampling = family.sampling
    flow = (prediction or sampling.predictions[0]) == "flow"
    return make_schedule(flow, shift or sampling.flow_shift, zero_terminal_snr)


def schedule_of(recipe: Recipe) -> Schedule:
    """The noise schedule that a recipe's levels are on."""
    return make_schedule(recipe.prediction == "flow", recipe.shift, recipe.zero_terminal_snr)


def counted(number: int, noun: str) -> str:
    """The number with its noun, as "1 step" or "4 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def default_recipe(
    family: str,
    prediction: str,
    *,
    shift: float | None = None,
    zero_terminal_snr: bool = False,
    num_steps: int = 4,
) -> Recipe:
    """The grid that students have unless made otherwise: even in position, as "Simple" in hosts.

    Args:
        shift: of a flow model; None is its family's.
    """
    flow = prediction == "flow"
    if flow and shift is None and family in FAMILY_LABELS:  # the recipe refuses any other
        shift = facts_of(family).sampling.flow_shift
    schedule = make_schedule(flow, shift, zero_terminal_snr)
    levels = Levels.at_positions(schedule, few_step_positions(num_steps))
    return Recipe(
        family=family,
        prediction=prediction,
        num_steps=num_steps,
        sigmas=tuple(levels.sigmas.tolist()),
        timesteps=tuple(levels.timesteps.tolist()[:-1]),
        shift=shift if flow else None,
        zero_terminal_snr=zero_terminal_snr,
        num_anchored_steps=0,
        objective="unknown",
    )


def plan(recipe: Recipe, *, steps: int = 0, denoise: float = 1.0, exact: bool = False) -> Plan:
    """The levels to sample at.

    Args:
        steps: 0 takes the recipe's; others keep the spacing of its grid.
        denoise: share of the trajectory to redo, in (0, 1]; below 1 it starts at the trained level
            nearest to it, or with `exact` at that very level.

    Raises:
        SettingsError: fewer than one step, too many, or a denoise outside (0, 1].
    """
    notes = []
    sigmas = torch.tensor(recipe.sigmas, dtype=torch.float32)
    if steps and steps != recipe.num_steps:
        sigmas = respaced(recipe, steps)
        notes.append(steps_note(recipe.num_steps, steps))
    if denoise != 1:
        whole = sigmas
        sigmas = _exact(recipe, sigmas, denoise) if exact else partial_sigmas(sigmas, denoise)
        left, total = len(sigmas) - 1, len(whole) - 1
        if not exact:
            notes.append(
                f"Denoise {denoise:g} starts at the nearest trained level: {left} of {total} "
                f"steps, which is {left / total:.2g}."
            )
    return Plan(sigmas, recipe.guidance_scale, recipe.solver, tuple(notes))


def steps_note(trained: int, steps: int) -> str:
    """What to expect of another number of steps than trained for (docs/fidelity.md counts it)."""
    if steps < trained:
        advice = "Fewer steps lose variety and detail."
    elif steps <= 2 * trained:
        advice = "Up to twice as many mostly draw as well or better."
    else:
        advice = "More than twice as many were never tried."
    return (
        f"The LoRA was trained for {trained} steps; {steps} follow the same spacing, which it has "
        f"not seen. {advice}"
    )


def _exact(recipe: Recipe, sigmas: Tensor, denoise: float) -> Tensor:
    if not 0 < denoise <= 1:
        raise SettingsError(f"denoise is {denoise}; expected more than 0 and at most 1.")
    position = torch.tensor([1000 * denoise - 1], dtype=torch.float64)
    return sigmas_from(sigmas, float(schedule_of(recipe).sigma_at(position)))


def respaced(recipe: Recipe, steps: int) -> Tensor:
    """The recipe's grid with another number of steps: same spacing, shape (steps + 1,).

    Raises:
        SettingsError: fewer than one step, or more than a recipe can have.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise SettingsError(
            f"{steps} steps were asked for; expected 1 to {MAX_STEPS}, or 0 for the recipe's own "
            f"{recipe.num_steps}."
        )
    schedule = schedule_of(recipe)
    if is_plain_grid(recipe):
        return Levels.at_positions(schedule, few_step_positions(steps)).sigmas
    own = torch.tensor([*_positions(recipe), -1.0], dtype=torch.float64)
    place = torch.linspace(0, len(own) - 1, steps + 1, dtype=torch.float64)
    low = place.floor().long().clamp(max=len(own) - 2)
    positions = torch.lerp(own[low], own[low + 1], place - low)
    return Levels.at_positions(schedule, positions).sigmas


def _positions(recipe: Recipe) -> list[float]:
    """Positions 999 .. 0 of the recipe's levels; those of a flow are found by undoing its shift."""
    if recipe.prediction != "flow":
        return list(recipe.timesteps)
    shift = recipe.shift or 1.0
    return [1000 * s / (shift - (shift - 1) * s) - 1 for s in recipe.sigmas[:-1]]


def trained_levels(recipe: Recipe, sigmas: Tensor) -> Tensor:
    """A host's levels with those between the first and the last replaced by trained ones.

    The first is what the host noised to, and the last where it wants to end; a host that asks for
    a whole trajectory of another number of steps gets that many, by the recipe's spacing.

    Args:
        sigmas: decreasing, shape (n + 1,).
    """
    if len(sigmas) < 2:
        return sigmas
    own = torch.tensor(recipe.sigmas, dtype=torch.float32)
    first, last, count = float(sigmas[0]), float(sigmas[-1]), len(sigmas) - 1
    if is_whole_trajectory(recipe, sigmas):
        # its own first level may lie below the host's: zero terminal SNR on one side alone
        inner = (own if count == recipe.num_steps else respaced(recipe, count))[1:-1]
    else:
        inner = own[(own < first * (1 - SAME_LEVEL)) & (own > last * (1 + SAME_LEVEL))]
    ends = sigmas[:1].float().cpu(), sigmas[-1:].float().cpu()
    return torch.cat([ends[0], inner, ends[1]]).to(sigmas)


def is_whole_trajectory(recipe: Recipe, sigmas: Tensor) -> bool:
    """Whether a host's levels, shape (n + 1,), go from the recipe's first or above it to 0."""
    return float(sigmas[0]) >= recipe.sigmas[0] * (1 - SAME_LEVEL) and float(sigmas[-1]) == 0
