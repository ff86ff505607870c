"""The noise schedules that families' facts and recipes speak of."""

from __future__ import annotations

from ..diffusion.schedule import FlowSchedule, Schedule, VPSchedule
from ..families import Family
from .recipe import Recipe


def make_schedule(flow: bool, shift: float | None, zero_terminal_snr: bool) -> Schedule:
    """A flow schedule of that shift (None: no shift), or the VP schedule."""
    return FlowSchedule(shift or 1.0) if flow else VPSchedule(zero_terminal_snr)


def family_schedule(family: Family, zero_terminal_snr: bool = False) -> Schedule:
    """The noise schedule that a family's models were trained with."""
    sampling = family.sampling
    return make_schedule(sampling.schedule == "flow", sampling.flow_shift, zero_terminal_snr)


def schedule_of(recipe: Recipe) -> Schedule:
    """The noise schedule that a recipe's levels are on."""
    return make_schedule(recipe.prediction == "flow", recipe.shift, recipe.zero_terminal_snr)
