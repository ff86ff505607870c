"""The sampler "DP-DMD" and its schedule type, in the terms of A1111 and its family."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.diffusion.sampler import sample_few_step
from ...core.diffusion.schedule import NUM_LEVELS
from ...core.recipe.anchored import AskedAnchor, anchored_plan
from ...core.recipe.few_step import Plan, schedule_of
from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import Asked, follows_flow
from ..host import loras, models, page, samplers, scripts
from . import attention, infotext
from .generation import Anchor, anchor_of, in_force, resolved, told

NAME = "DP-DMD"
SCHEDULER = "dp_dmd"
EXACT_STRENGTH = "dpdmd_exact_strength"
Callback = Callable[[dict[str, Any]], None]


def register() -> None:
    """Put sampler and schedule type into the host's lists; may be called any number of times."""
    samplers.register_scheduler(SCHEDULER, NAME, schedule)
    samplers.register_sampler(NAME, _make, {"scheduler": SCHEDULER})


def _make(model: Any) -> Any:
    return sampler_class()(few_step, model)


def schedule(
    n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any = "cpu"
) -> Tensor:
    """Sigmas of n steps, shape (n + 1,): the active LoRA's own, or the family's usual ones.

    Raises:
        DPDMDError: the checkpoint is none of ours, or the LoRA is for another kind.
    """
    return in_force(models.model_facts(inner_model.sigmas), Asked(steps=n)).plan.sigmas.to(device)


def few_step(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """The few-step solver as the host calls samplers: one evaluation a step at CFG 1."""
    recipe = resolved(model.p, model.inner_model.sigmas).recipe
    follow(recipe, model)  # again: a refiner puts the host's own denoiser back
    call = Call(model, recipe, dict(extra_args or {}), callback)
    if getattr(getattr(model, "sampler", None), "dpdmd_from_noise", False):
        x = x * samplers.initial_noise_factor(sigmas[0], recipe.prediction == "flow").to(x)
    anchor = anchor_of(model.p)
    with attention.during(told(model.p).attention):
        if anchor is not None and len(sigmas) > 2:
            return anchored(call, x, sigmas, anchor)
        if told(model.p).anchor is not None:  # nothing left to it here
            call = call.guided(recipe.guidance_scale)
            if not scripts.is_second_pass(model.p):  # an image that was hardly redone
                model.p.extra_generation_params.pop(infotext.ANCHORED, None)
        samplers.set_total_steps(model, len(sigmas) - 1)
        return _student_part(call, x, sigmas)


def follow(recipe: Recipe, denoiser: Any) -> bool:
    """Let the host's denoiser be a flow where the recipe is of one; whether it is one of ours."""
    if getattr(denoiser.inner_model, "dpdmd_flow", False):
        return True
    facts = models.model_facts(denoiser.inner_model.sigmas)
    if facts is None or not follows_flow(recipe, facts):
        return False
    positions = torch.arange(NUM_LEVELS, dtype=torch.float64)
    samplers.sample_as_flow(denoiser, schedule_of(recipe).sigma_at(positions))
    return True


@dataclass(frozen=True)
class Call:
    """One call of the sampler by the host, its arguments and its callback, by a recipe."""

    model: Any
    recipe: Recipe
    arguments: dict[str, Any]
    callback: Callback | None

    def guided(self, scale: float) -> Call:
        """The same at another guidance."""
        return replace(self, arguments={**self.arguments, "cond_scale": scale})

    def without_negative(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the negative prompt is left out where the guidance is off."""
        scale = float(self.arguments.get("cond_scale", 1.0))
        return samplers.without_negative(self.model, scale, self.arguments.get("cond"))


def _student_part(call: Call, x: Tensor, sigmas: Tensor) -> Tensor:
    recipe = call.recipe
    noise = samplers.noise_sampler(call.model) if recipe.solver == "sde" else None
    with call.without_negative():
        return sample_few_step(
            call.model, x, sigmas, call.arguments, call.callback,
            solver=recipe.solver, noise_sampler=noise, flow=recipe.prediction == "flow",
        )  # fmt: skip


def anchored(call: Call, x: Tensor, sigmas: Tensor, anchor: Anchor) -> Tensor:
    """The first step by the base model in small guided ones, the rest by the student.

    `core.recipe.anchored` says why this brings diversity back and how the state is handed over.
    """
    recipe = call.recipe
    alone = Plan(sigmas, recipe.guidance_scale, recipe.solver)
    both = anchored_plan(recipe, alone, AskedAnchor(steps=anchor.steps, guidance=anchor.guidance))
    parts = len(both.base_sigmas) - 1
    samplers.set_total_steps(call.model, both.num_steps)
    base, student = call.guided(both.base_guidance), call.guided(both.guidance_scale)

    def later(step: dict[str, Any]) -> None:
        if call.callback is not None:
            call.callback({**step, "i": step["i"] + parts})

    with loras.lora_beside_layers():
        with loras.loras_off(anchor.loras, x), base.without_negative():
            x = sample_few_step(base.model, x, both.base_sigmas, base.arguments, base.callback)
        return _student_part(replace(student, callback=later), x, both.student_sigmas)


def sampler_class() -> type:
    """The host's sampler class with starts of our own."""
    base: Any = samplers.sampler_base()

    class FewStepSampler(base):
        """Starts from unit variance, and image to image at sigmas the LoRA was trained at."""

        dpdmd_from_noise = False
        dpdmd_sigmas: Tensor | None = None

        def get_sigmas(self, p: scripts.Processing, steps: int) -> Tensor:
            """The host's sigmas, or those of `sample_img2img`."""
            if self.dpdmd_sigmas is not None:
                return self.dpdmd_sigmas
            if told(p).recipe is not None and uses_own_schedule(p):
                p.extra_generation_params["Schedule type"] = NAME
                return resolved(p, self.model_wrap.sigmas, Asked(steps=steps)).plan.sigmas
            return super().get_sigmas(p, steps)

        def sample(self, p: scripts.Processing, *inputs: Any, **options: Any) -> Any:
            """Text to image."""
            self.dpdmd_from_noise, self.dpdmd_sigmas = True, None
            self._follow(p)
            _own_guidance(p)
            return super().sample(p, *inputs, **options)

        def sample_img2img(
            self,
            p: scripts.Processing,
            x: Tensor,
            noise: Tensor,
            conditioning: Any,
            unconditional_conditioning: Any,
            steps: int | None = None,
            image_conditioning: Any = None,
        ) -> Any:
            """Image to image, and the second pass of hires fix."""
            self.dpdmd_from_noise, self.dpdmd_sigmas = False, None
            _own_guidance(p)
            noising = samplers.noising_as_flow() if self._follow(p) else contextlib.nullcontext()
            whole = super().get_sigmas(p, steps or p.steps)
            if uses_own_schedule(p):
                part = partial_plan(p, self.model_wrap.sigmas, steps or p.steps)
                # the host cuts the grid by a rule of its own: what it cuts off stands in front
                filler = whole[:1].repeat(samplers.skipped_steps(p, steps))
                self.dpdmd_sigmas = torch.cat([filler, part.sigmas.to(whole)])
            try:
                with noising:
                    return super().sample_img2img(
                        p, x, noise, conditioning, unconditional_conditioning,
                        steps=steps, image_conditioning=image_conditioning,
                    )  # fmt: skip
            finally:
                self.dpdmd_sigmas = None

        def _follow(self, p: scripts.Processing) -> bool:
            recipe = resolved(p, self.model_wrap.sigmas).recipe
            followed = follow(recipe, self.model_wrap_cfg)
            self.model_wrap = self.model_wrap_cfg.inner_model
            return followed

    return FewStepSampler


def _own_guidance(p: scripts.Processing) -> None:
    """Undo what made the host prepare a negative prompt for the base model's part."""
    found = told(p)
    if found.anchor is not None and found.recipe is not None:
        p.cfg_scale = found.recipe.guidance_scale


def uses_own_schedule(p: scripts.Processing) -> bool:
    """Whether the generation, in its present pass, has our schedule type."""
    named = getattr(p, "hr_scheduler", None) if getattr(p, "is_hr_pass", False) else None
    named = named or getattr(p, "scheduler", None)
    return named in (None, "", "Automatic", "Use same scheduler", NAME, SCHEDULER)


def partial_plan(p: scripts.Processing, sigmas: Tensor, steps: int) -> Plan:
    """The sigmas of an image to image pass, said in the infotext."""
    exact = bool(page.option(EXACT_STRENGTH, False))
    strength = min(1.0, max(float(p.denoising_strength), 1e-3))
    asked = Asked(steps=steps, denoise=strength, exact=True)
    part = resolved(p, sigmas, asked).plan
    below_all = part.num_steps == 1 and strength < 1  # of the trained levels
    if not exact and not below_all:
        part = resolved(p, sigmas, replace(asked, exact=False)).plan
    if exact:
        p.extra_generation_params[infotext.EXACT_STRENGTH] = True
    p.extra_generation_params[infotext.IMAGE_STEPS] = f"{part.num_steps} of {steps}"
    return part
