"""The sampler "DP-DMD" and its schedule type, in the terms of A1111 and its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.sampler import sample_few_step
from ...core.recipe.anchored import divided_step, trained_anchor_steps
from ...core.recipe.few_step import Plan, plan, schedule_of
from ...core.recipe.recipe import Recipe
from .. import host
from . import attention
from .generation import (
    Anchor,
    anchor_of,
    attention_of,
    has_own_recipe,
    is_anchored,
    recipe_of_generation,
)
from .recipes import recipe_for

NAME = "DP-DMD"
SCHEDULER = "dp_dmd"
EXACT_STRENGTH, EXACT_STRENGTH_TEXT = "dpdmd_exact_strength", "DP-DMD exact strength"
Callback = Callable[[dict[str, Any]], None]


def register() -> None:
    """Put sampler and schedule type into the host's lists; may be called any number of times."""
    host.register_scheduler(SCHEDULER, NAME, schedule)
    host.register_sampler(NAME, _make, {"scheduler": SCHEDULER})


def _make(model: Any) -> Any:
    return sampler_class()(few_step, model)


def schedule(
    n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu"
) -> Tensor:
    """Levels of n steps, shape (n + 1,): the active LoRA's own, or the family's usual ones.

    Raises:
        DPDMDError: the checkpoint is none of ours, or the LoRA is for another kind.
    """
    recipe = recipe_for(host.model_facts(inner_model.sigmas))
    return plan(recipe, steps=n).sigmas.to(device)


def few_step(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """The few-step solver as the host calls samplers: one evaluation a step at CFG 1."""
    arguments = dict(extra_args or {})
    recipe = recipe_of_generation(model.p, model.inner_model.sigmas)
    if getattr(getattr(model, "sampler", None), "dpdmd_from_noise", False):
        x = x * host.start_factor(sigmas[0], recipe.prediction == "flow").to(x)
    anchor = anchor_of(model.p)
    with attention.during(attention_of(model.p)):
        if anchor is not None and len(sigmas) > 2:
            return anchored(model, x, sigmas, recipe, anchor, arguments, callback)
        if is_anchored(model.p):  # nothing left to it here
            arguments["cond_scale"] = recipe.guidance_scale
        host.set_total_steps(model, len(sigmas) - 1)
        return _student_part(model, x, sigmas, recipe, arguments, callback)


def _student_part(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    recipe: Recipe,
    arguments: dict[str, Any],
    callback: Callback | None,
) -> Tensor:
    noise = host.noise_sampler(x) if recipe.solver == "sde" else None
    scale = float(arguments.get("cond_scale", 1.0))
    with host.without_negative(model, scale, arguments.get("cond")):
        return sample_few_step(
            model, x, sigmas, arguments, callback,
            solver=recipe.solver, noise_sampler=noise, flow=recipe.prediction == "flow",
        )  # fmt: skip


def anchored(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    recipe: Recipe,
    anchor: Anchor,
    arguments: dict[str, Any],
    callback: Callback | None,
) -> Tensor:
    """The first step by the base model in small guided ones, the rest by the student.

    `core.anchored` says why this brings diversity back and how the state is handed over.
    """
    parts = anchor.steps or trained_anchor_steps(recipe, float(sigmas[1]))
    base_sigmas = divided_step(schedule_of(recipe), sigmas[:2], parts)
    host.set_total_steps(model, parts + len(sigmas) - 2)
    base = {**arguments, "cond_scale": anchor.guidance}
    student = {**arguments, "cond_scale": recipe.guidance_scale}

    def later(step: dict[str, Any]) -> None:
        if callback is not None:
            callback({**step, "i": step["i"] + parts})

    with host.lora_beside_layers():
        plain = host.without_negative(model, anchor.guidance, arguments.get("cond"))
        with host.loras_off(anchor.loras), plain:
            x = sample_few_step(model, x, base_sigmas, base, callback)
        return _student_part(model, x, sigmas[1:], recipe, student, later)


def sampler_class() -> type:
    """The host's sampler class with starts of our own."""
    base: Any = host.sampler_base()

    class FewStepSampler(base):
        """Starts from unit variance, and image to image at levels the LoRA was trained at."""

        dpdmd_from_noise = False
        dpdmd_levels: Tensor | None = None

        def get_sigmas(self, p: host.Processing, steps: int) -> Tensor:
            """The host's levels, or those of `sample_img2img`."""
            if self.dpdmd_levels is not None:
                return self.dpdmd_levels
            if has_own_recipe(p) and uses_own_schedule(p):
                p.extra_generation_params["Schedule type"] = NAME
                recipe = recipe_of_generation(p, self.model_wrap.sigmas)
                return plan(recipe, steps=steps).sigmas
            return super().get_sigmas(p, steps)

        def sample(self, p: host.Processing, *inputs: Any, **options: Any) -> Any:
            """Text to image."""
            self.dpdmd_from_noise, self.dpdmd_levels = True, None
            return super().sample(p, *inputs, **options)

        def sample_img2img(
            self,
            p: host.Processing,
            x: Tensor,
            noise: Tensor,
            conditioning: Any,
            unconditional_conditioning: Any,
            steps: int | None = None,
            image_conditioning: Any = None,
        ) -> Any:
            """Image to image, and the second pass of hires fix."""
            self.dpdmd_from_noise, self.dpdmd_levels = False, None
            whole = super().get_sigmas(p, steps or p.steps)
            if uses_own_schedule(p):
                part = partial_plan(p, self.model_wrap.sigmas, steps or p.steps)
                # the host cuts the grid by a rule of its own: what it cuts off stands in front
                filler = whole[:1].repeat(host.skipped_levels(p, steps))
                self.dpdmd_levels = torch.cat([filler, part.sigmas.to(whole)])
            try:
                return super().sample_img2img(
                    p, x, noise, conditioning, unconditional_conditioning,
                    steps=steps, image_conditioning=image_conditioning,
                )  # fmt: skip
            finally:
                self.dpdmd_levels = None

    return FewStepSampler


def uses_own_schedule(p: host.Processing) -> bool:
    """Whether the generation, in its present pass, has our schedule type."""
    named = getattr(p, "hr_scheduler", None) if getattr(p, "is_hr_pass", False) else None
    named = named or getattr(p, "scheduler", None)
    return named in (None, "", "Automatic", "Use same scheduler", NAME, SCHEDULER)


def partial_plan(p: host.Processing, sigmas: Tensor, steps: int) -> Plan:
    """The levels of an image to image pass, said in the infotext."""
    exact = bool(host.option(EXACT_STRENGTH, False))
    recipe = recipe_of_generation(p, sigmas)
    strength = min(1.0, max(float(p.denoising_strength), 1 / steps if not exact else 1e-3))
    part = plan(recipe, steps=steps, denoise=strength, exact=exact)
    if exact:
        p.extra_generation_params[EXACT_STRENGTH_TEXT] = True
    p.extra_generation_params["DP-DMD image steps"] = f"{part.num_steps} of {steps}"
    return part
