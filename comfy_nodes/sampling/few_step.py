"""Sampling by a recipe: as SAMPLER and SIGMAS for custom sampling, or all in one.

`dp_dmd` in the sampler and scheduler dropdowns of core's KSampler and its relatives is here, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.sampler import sample_few_step
from ...core.diffusion.schedule import NUM_LEVELS, few_step_positions
from ...core.errors import SettingsError
from ...core.recipe.few_step import SAME_LEVEL, Plan, trained_levels
from ...core.recipe.recipe import MAX_STEPS, Recipe
from ...core.recipe.resolve import Asked
from ..host import models, running, sampling
from ..host.inputs import node_input, seed_input
from .recipes import find_recipe, has_recipe

NAME = "dp_dmd"
logger = logging.getLogger("dpdmd_studio.comfyui")

MODEL = node_input("MODEL", "The model with the few-step LoRA.")
RECIPE = node_input(
    "DPDMD_RECIPE",
    "How the LoRA was trained to be sampled. Without it the recipe is read from the model's LoRA, "
    "and failing that the family's usual grid is taken.",
)
POSITIVE = node_input("CONDITIONING", "The prompt.")
LATENT = node_input("LATENT", "An empty latent, or an image's with denoise below 1.")
SEED = seed_input("The same seed gives core's KSampler the same noise.")
STEPS = node_input(
    "INT",
    "0 takes the recipe's own number. Other numbers keep the spacing of its grid.",
    default=0,
    min=0,
    max=MAX_STEPS,
)
DENOISE = node_input(
    "FLOAT",
    "Below 1 for image to image: sampling starts at the trained noise level nearest to it.",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
)


def few_step_sampler(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    solver: str | None = None,
    **_: object,
) -> Tensor:
    """The few-step sampler as ComfyUI calls samplers; noise of "sde" comes from its seed.

    Args:
        solver: of a plan whose levels `sigmas` are; None, as from the dropdown, takes solver and
            levels of the recipe on the MODEL (`recipe_levels`).

    Raises:
        LoraError: the recipe is for another family or prediction.
        RecipeError: the recipe is broken or of a newer version.
    """
    if solver is None:
        sigmas, solver = recipe_levels(model, sigmas)
    if solver == "ode":
        return sample_few_step(model, x, sigmas, extra_args, callback, disable)
    noise = sampling.noise_sampler(x, (extra_args or {}).get("seed"))
    flow = sampling.is_flow(model)
    return sample_few_step(
        model, x, sigmas, extra_args, callback, disable,
        solver=solver, noise_sampler=noise, flow=flow,
    )  # fmt: skip


def recipe_levels(model: Callable[..., Tensor], sigmas: Tensor) -> tuple[Tensor, str]:
    """(levels, solver) by the recipe of the LoRA on the MODEL, for a host's own levels.

    The first level, to which the host noised, stays; below it only trained levels are evaluated.
    Without a recipe it is the plain ODE solver at the host's levels.
    """
    patcher = sampling.patcher_of(model)
    if patcher is None or not has_recipe(patcher):
        return sigmas, "ode"
    recipe = find_recipe(patcher).recipe
    levels = trained_levels(recipe, sigmas)
    if len(levels) != len(sigmas) or not torch.allclose(levels, sigmas, rtol=SAME_LEVEL, atol=1e-6):
        shown = " ".join(f"{sigma:.3g}" for sigma in levels.tolist())
        logger.info("%s samples at the LoRA's levels: %s", NAME, shown)
    return levels, recipe.solver


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


def trajectory_of(plan: Plan) -> sampling.Trajectory:
    """A plan with its SAMPLER."""
    sampler = sampling.sampler_object(few_step_sampler, {"solver": plan.solver})
    return sampling.Trajectory(sampler, plan.sigmas, plan.guidance_scale)


class Sampler:
    """DP-DMD Sampler: for SamplerCustomAdvanced and its guiders."""

    DISPLAY_NAME = "DP-DMD Sampler"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Sampler, noise levels and guidance of a few-step LoRA for custom sampling: connect them "
        "to SamplerCustomAdvanced and to CFGGuider (or BasicGuider, which is CFG 1)."
    )
    SEARCH_ALIASES = ("few step", "sigmas", "dmd sampler", "custom sampler")
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "FLOAT")
    RETURN_NAMES = ("sampler", "sigmas", "cfg")
    OUTPUT_TOOLTIPS = (
        "The few-step solver.",
        "The noise levels the LoRA was trained at.",
        "The guidance scale it is sampled with, mostly 1.",
    )
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {
            "required": {"model": MODEL, "steps": STEPS, "denoise": DENOISE},
            "optional": {"recipe": RECIPE},
        }

    def make(
        self, model: models.Model, steps: int, denoise: float, recipe: Recipe | None = None
    ) -> dict[str, Any]:
        """SAMPLER, SIGMAS and guidance for a model."""
        wanted = find_recipe(model, recipe, Asked(steps=steps, denoise=denoise)).plan
        way = trajectory_of(wanted)
        return running.outcome(wanted.describe(), (way.sampler, way.sigmas, way.guidance_scale))


class KSampler:
    """DP-DMD KSampler: all in one."""

    DISPLAY_NAME = "DP-DMD KSampler"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Samples with a few-step LoRA at its own steps, noise levels and guidance. A negative "
        "prompt is only needed where the recipe asks for guidance."
    )
    SEARCH_ALIASES = ("few step sampler", "ksampler", "dmd sampler", "sample", "lightning sampler")
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        negative = node_input("CONDITIONING", "Not evaluated at CFG 1, so it may be left open.")
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "steps": STEPS,
                "denoise": DENOISE,
            },
            "optional": {"negative": negative, "recipe": RECIPE},
        }

    def sample(
        self,
        model: models.Model,
        positive: sampling.Conditioning,
        latent_image: sampling.Latent,
        seed: int,
        steps: int,
        denoise: float,
        negative: sampling.Conditioning | None = None,
        recipe: Recipe | None = None,
    ) -> dict[str, Any]:
        """Sample by the recipe.

        Raises:
            SettingsError: the recipe wants guidance and there is no negative prompt.
        """
        wanted = find_recipe(model, recipe, Asked(steps=steps, denoise=denoise)).plan
        check_negative(wanted.guidance_scale, negative)
        subject = sampling.Subject(positive, negative, latent_image, seed)
        latent = sampling.sample(model, trajectory_of(wanted), subject)
        return running.outcome(wanted.describe(), (latent,))


def check_negative(guidance_scale: float, negative: sampling.Conditioning | None) -> None:
    """Raise SettingsError where guidance needs a negative prompt that is not there."""
    if guidance_scale != 1.0 and negative is None:
        raise SettingsError(
            f"This samples with CFG {guidance_scale:g}, and no negative prompt is connected. "
            "Connect one (it may be empty) to the negative input."
        )


NODES = (Sampler, KSampler)
