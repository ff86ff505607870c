"""`dp_dmd` in the sampler and scheduler dropdowns of core's KSampler and its relatives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.schedule import NUM_LEVELS, few_step_positions
from ...core.recipe.few_step import SAME_LEVEL, trained_levels
from ..host import sampling
from .few_step import few_step_sampler
from .recipes import find_recipe, has_recipe

NAME = "dp_dmd"
logger = logging.getLogger("dpdmd_studio.comfyui")


def register() -> None:
    """Put the entries into the dropdowns of this ComfyUI; may be called any number of times."""
    sampling.register_sampler(NAME, sample)
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


def sample(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    **_: object,
) -> Tensor:
    """The dropdown's sampler: at the LoRA's own levels where its recipe is on the MODEL.

    The first level, to which the host noised, stays; below it only trained levels are evaluated.
    Without a recipe it is the plain ODE solver at the host's levels.

    Raises:
        LoraError: the recipe is for another family or prediction.
        RecipeError: the recipe is broken or of a newer version.
    """
    patcher = sampling.patcher_of(model)
    if patcher is None or not has_recipe(patcher):
        return few_step_sampler(model, x, sigmas, extra_args, callback, disable)
    recipe = find_recipe(patcher).recipe
    levels = trained_levels(recipe, sigmas)
    if len(levels) != len(sigmas) or not torch.allclose(levels, sigmas, rtol=SAME_LEVEL, atol=1e-6):
        shown = " ".join(f"{sigma:.3g}" for sigma in levels.tolist())
        logger.info("%s samples at the LoRA's levels: %s", NAME, shown)
    return few_step_sampler(model, x, levels, extra_args, callback, disable, solver=recipe.solver)
