"""`dp_dmd` in the sampler and scheduler dropdowns of core's KSampler and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.schedule import NUM_LEVELS, few_step_positions
from ..host import sampling
from .few_step import NAME, few_step_sampler


def register() -> None:
    """Put the entries into the dropdowns of this ComfyUI; may be called any number of times."""
    sampling.register_sampler(NAME, few_step_sampler)
    sampling.register_scheduler(NAME, schedule)


def schedule(model_sampling: Any, steps: int) -> Tensor:
    """The family's few-step grid from the host's own table of levels, shape (steps + 1,).

    The same levels as `core.schedule.few_step_positions`: VP timesteps 999, 749, 499, 249 and flow
    sigmas 1, .9, .75, .5 (shift 3) at four steps.
    """
    table = model_sampling.sigmas
    positions = few_step_positions(max(1, min(steps, NUM_LEVELS)))[:-1]
    index = ((positions + 1) * len(table) / NUM_LEVELS - 1).round().long().clamp(min=0)
    levels = table.detach().float().cpu()[index]
    return torch.cat([levels, levels.new_zeros(1)])
