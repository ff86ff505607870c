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
from ...core.recipe.few_step import (
    SAME_LEVEL,
    Plan,
    counted,
    is_whole_trajectory,
    trained_levels,
)
from ...core.recipe.recipe import MAX_STEPS, Recipe
from ...core.recipe.resolve import Asked
from ..host import models, running, sampling
from ..host.inputs import ZERO_IS_AUTO, node_input, seed_input
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
    "0 takes the recipe's own number. Other numbers keep the spacing of its grid: up to twice as "
    "many mostly draw as well or better, fewer lose variety and detail.",
    default=0,
    min=0,
    max=MAX_STEPS,
    **{ZERO_IS_AUTO: True},
)
DENOISE = node_input(
    "FLOAT",
    "Below 1 for image to image: sampling starts at the trained noise level nearest to it.",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
)


NEAREST, EXACT = "trained level", "exact level"
DENOISE_START = node_input(
    [NEAREST, EXACT],
    "Where denoise below 1 starts. trained level: at the nearest one of the LoRA, so that only "
    "levels that it was trained at are evaluated. exact level: at denoise itself, then at the "
    "trained levels below it; for small changes, below the LoRA's last level.",
    default=NEAREST,
)
NEGATIVE_IDLE = (
    "At CFG 1 the negative prompt is not evaluated. Say in the prompt what should be there "
    "instead, put core's Normalized Attention Guidance before this node, or train a LoRA with a "
    "teacher_negative."
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
    if len(sigmas) > 1 and sigmas[0] < sigmas[-1]:
        # turned over by FlipSigmas: from an image to its noise, which is Euler's method backwards
        return sampling.euler(model, x, sigmas, extra_args, callback, disable)
    if solver is None:
        sigmas, solver = recipe_levels(model, sigmas)
    sample = sampling.on_console(sample_few_step)
    if solver == "ode":
        return sample(model, x, sigmas, extra_args, callback, disable)
    noise = sampling.noise_sampler(x, (extra_args or {}).get("seed"))
    flow = sampling.is_flow(model)
    return sample(
        model, x, sigmas, extra_args, callback, disable,
        solver=solver, noise_sampler=noise, flow=flow,
    )  # fmt: skip


def recipe_levels(model: Callable[..., Tensor], sigmas: Tensor) -> tuple[Tensor, str]:
    """(levels, solver) by the recipe of the LoRA on the MODEL, for a host's own levels.

    The first level, to which the host noised, stays; below it only trained levels are evaluated.
    Without a recipe it is the plain ODE solver at the host's levels. What is not as the recipe has
    it stands on the node and in the log.
    """
    patcher = sampling.patcher_of(model)
    if patcher is None or not has_recipe(patcher):
        return sigmas, "ode"
    found = find_recipe(patcher)
    recipe = found.recipe
    levels = trained_levels(recipe, sigmas)
    said = [*unlike_recipe(recipe, sigmas, sampling.guidance_of(model)), *found.notes]
    if said:
        logger.warning("%s: %s", NAME, " ".join(said))
        running.notify(running.executing_node(), "\n".join(said))
    if len(levels) != len(sigmas) or not torch.allclose(levels, sigmas, rtol=SAME_LEVEL, atol=1e-6):
        shown = " ".join(f"{sigma:.3g}" for sigma in levels.tolist())
        logger.info("%s samples at the LoRA's levels: %s", NAME, shown)
    return levels, recipe.solver


def unlike_recipe(recipe: Recipe, sigmas: Tensor, guidance: float | None) -> list[str]:
    """Notes on steps and CFG that somebody set otherwise than the LoRA was trained for.

    Args:
        sigmas: the host's levels, shape (n + 1,); only a whole trajectory has steps to compare.
        guidance: the CFG, None where it is not known.
    """
    notes, steps = [], len(sigmas) - 1
    if steps > 0 and is_whole_trajectory(recipe, sigmas) and steps != recipe.num_steps:
        notes.append(
            f"{steps} steps are set, and the LoRA was trained for {recipe.num_steps}: set steps to "
            f"{recipe.num_steps}."
        )
    trained = recipe.guidance_scale
    if guidance is not None and abs(guidance - trained) > 1e-3:
        effect = " With CFG above 1 images are overexposed, and each step costs two evaluations."
        notes.append(
            f"CFG {guidance:g} is set, and the LoRA was trained for {trained:g}: set cfg to "
            f"{trained:g}.{effect if guidance > 1 == trained else ''}"
        )
    return notes


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
    SEARCH_ALIASES = (
        "few step", "4 step", "turbo", "lightning", "sigmas", "dmd sampler", "custom sampler",
    )  # fmt: skip
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
            "optional": {"recipe": RECIPE, "denoise_start": DENOISE_START},
        }

    def make(
        self,
        model: models.Model,
        steps: int,
        denoise: float,
        recipe: Recipe | None = None,
        denoise_start: str = NEAREST,
    ) -> dict[str, Any]:
        """SAMPLER, SIGMAS and guidance for a model."""
        asked = Asked(steps=steps, denoise=denoise, exact=denoise_start == EXACT)
        wanted = find_recipe(model, recipe, asked, "model").plan
        way = trajectory_of(wanted)
        text = describe(wanted, asked)
        return running.outcome(text, (way.sampler, way.sigmas, way.guidance_scale))


class KSampler:
    """DP-DMD KSampler: all in one."""

    DISPLAY_NAME = "DP-DMD KSampler"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Samples with a few-step LoRA at its own steps, noise levels and guidance. A negative "
        "prompt is only needed where the recipe asks for guidance."
    )
    SEARCH_ALIASES = (
        "few step sampler", "4 step", "turbo", "lightning sampler", "ksampler", "dmd sampler",
        "sample",
    )  # fmt: skip
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
            "optional": {
                "negative": negative,
                "recipe": RECIPE,
                "denoise_start": DENOISE_START,
            },
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
        denoise_start: str = NEAREST,
    ) -> dict[str, Any]:
        """Sample by the recipe.

        Raises:
            SettingsError: the recipe, or a patch on the MODEL, needs a negative prompt, and there
                is none.
        """
        asked = Asked(steps=steps, denoise=denoise, exact=denoise_start == EXACT)
        wanted = find_recipe(model, recipe, asked, "model").plan
        check_negative(wanted.guidance_scale, negative, model)
        subject = sampling.Subject(positive, negative, latent_image, seed)
        latent = sampling.sample(model, trajectory_of(wanted), subject)
        idle = negative is not None and wanted.guidance_scale == 1.0
        said = [describe(wanted, asked)]
        if idle and not models.evaluates_negative(model):
            said.append(NEGATIVE_IDLE)
        return running.outcome("\n".join(said), (latent,))


def describe(plan: Plan, asked: Asked) -> str:
    """What a plan does, with what denoise did to it."""
    text, steps = plan.describe(), plan.num_steps
    if asked.denoise == 1:
        return text
    if asked.exact:
        count = counted(steps, "evaluation")
        return (
            f"{text}\nDenoise {asked.denoise:g} starts at exactly that level and goes on at the "
            f"trained levels below it: {count}."
        )
    return f"{text} Set denoise_start to {EXACT} for {asked.denoise:g} itself."


def check_negative(
    guidance_scale: float, negative: sampling.Conditioning | None, model: models.Model = None
) -> None:
    """Raise SettingsError where guidance needs a negative prompt that is not there.

    Args:
        model: one whose patches may need the negative prompt at CFG 1, too.
    """
    if negative is None and models.evaluates_negative(model):
        raise SettingsError(
            "A node before this one (such as Self-Attention Guidance) works with the negative "
            "prompt at CFG 1, too, and none is connected. Connect one (it may be empty) to the "
            "negative input, or take that node off."
        )
    if guidance_scale != 1.0 and negative is None:
        raise SettingsError(
            f"This samples with CFG {guidance_scale:g}, and no negative prompt is connected. "
            "Connect one (it may be empty) to the negative input."
        )


NODES = (Sampler, KSampler)
