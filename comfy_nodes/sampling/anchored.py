"""DP-DMD Anchored Sampler: the base model decides the layout, the few-step LoRA does the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...core.errors import SettingsError
from ...core.recipe.anchored import (
    GUIDED,
    MAX_ANCHOR_STEPS,
    ONE_PLAIN,
    AnchoredPlan,
    AnchoredTrajectory,
    AskedAnchor,
    anchored_plan,
)
from ...core.recipe.known_students import KNOWN_STUDENTS
from ...core.recipe.recipe import Recipe
from ...core.recipe.resolve import Asked, resolve
from ..host import loras, models, running, sampling
from ..host.inputs import ZERO_IS_AUTO, node_input
from .few_step import DENOISE, LATENT, POSITIVE, RECIPE, SEED, STEPS, check_negative
from .lora_switch import hooked, patch_difference, why_not_hooks, without_patches
from .recipes import WORDS, has_recipe, loras_named, loras_on

FROM_RECIPE = "recipe"
# here the LoRA is known to be a few-step one, and its kind can be chosen
ANCHORED_WORDS = replace(
    WORDS,
    no_recipe=(
        "The few-step LoRA has no recipe, so the usual grid of the family is taken, without fresh "
        "noise. {advice}"
    ),
)

SETTINGS = node_input(
    [FROM_RECIPE, *KNOWN_STUDENTS],
    "How the few-step LoRA is sampled: by its recipe, or as one of the known third-party few-step "
    "LoRAs, whose files do not say it.",
    default=FROM_RECIPE,
)
ANCHOR = node_input(
    [GUIDED, ONE_PLAIN],
    "What the base model does up to the level where the few-step model's first step ends: several "
    "guided steps (most diversity), or one step without guidance (as fast as the LoRA alone).",
    default=GUIDED,
)
ANCHOR_STEPS = node_input(
    "INT",
    "Guided steps only: how many the base model takes up to that level. 0 is as many as in the "
    "LoRA's training, 7 where that is not known.",
    default=0,
    min=0,
    max=MAX_ANCHOR_STEPS,
    **{ZERO_IS_AUTO: True},
)
BASE_CFG = node_input(
    "FLOAT",
    "Guidance of the base model's part. 0 is the LoRA's teacher's for guided steps (the family's "
    "usual one where that is not known) and 1, which is off, for one plain step.",
    default=0.0,
    min=0.0,
    max=100.0,
    step=0.1,
    **{ZERO_IS_AUTO: True},
)
SOLVER = node_input(
    ["auto", "ode", "sde"],
    "auto is what the settings say. ode: no fresh noise; sde: fresh noise after every step of the "
    "few-step model, as DMD2 and LCM are made for.",
    default="auto",
)


@dataclass(frozen=True)
class Request:
    """The node's inputs that decide how it samples."""

    settings: str
    anchor: str
    anchor_steps: int
    base_cfg: float
    solver: str
    steps: int
    denoise: float
    recipe: Recipe | None = None

    def plan(self, base: models.Model, few_step: models.Model) -> AnchoredPlan:
        """Both parts of the trajectory.

        Raises:
            DPDMDError: a recipe that does not fit, or settings that cannot be sampled.
        """
        kind = "" if self.settings == FROM_RECIPE else self.settings
        facts = models.model_facts(base if kind else few_step)
        asked = Asked(kind, self.steps, self.denoise)
        there, notes = loras_on(few_step, self.recipe), []
        if not there:
            there, notes = loras_named(few_step, "few_step_model")
        found = resolve(facts, there, asked, ANCHORED_WORDS)
        found = found.with_notes([] if kind else notes)
        anchor = AskedAnchor(self.anchor, self.anchor_steps, self.base_cfg or None, self.solver)
        return anchored_plan(found.recipe, found.plan, anchor)


@dataclass(frozen=True)
class Switch:
    """How the few-step LoRA comes in: the MODEL of the second part, and what is on inside it."""

    model: models.Model
    inside: Callable[[], contextlib.AbstractContextManager[Any]]
    note: str


def switch(base: models.Model, few_step: models.Model) -> Switch:
    """The cheapest way from the one MODEL to the other.

    Raises:
        SettingsError: they are the same, so there is no few-step LoRA, or they are swapped.
    """
    if is_swapped(base, few_step):
        raise SettingsError(
            "base_model and few_step_model are swapped: the few-step LoRA is on base_model. "
            "Connect the MODEL from before its loader to base_model, and the one behind it to "
            "few_step_model."
        )
    if few_step.model is base.model and not differ(base, few_step):
        raise SettingsError(
            "base_model and few_step_model are the same. Connect base_model before the few-step "
            "LoRA's loader and few_step_model behind it; style LoRAs come before both."
        )
    hook_type = loras.bypass_hook()
    reason = why_not_hooks(base, few_step, hook_type)
    if reason or hook_type is None:
        note = f"Weights are patched twice an image: {reason}."
        return Switch(few_step, contextlib.nullcontext, note)
    layers = len(patch_difference(base.patches, few_step.patches)[0])
    note = f"The few-step LoRA is switched on in {layers} layers of the loaded model."
    return Switch(without_patches(base, few_step), lambda: hooked(base, few_step, hook_type), note)


def is_swapped(base: models.Model, few_step: models.Model) -> bool:
    """Whether the few-step LoRA is on the MODEL that should be without."""
    if few_step.model is base.model:
        added, removed = patch_difference(base.patches, few_step.patches)
        if added or not removed:
            return False
        if not getattr(few_step, "injections", None):
            return True
    return has_recipe(base, "base_model") and not has_recipe(few_step, "few_step_model")


def differ(base: models.Model, few_step: models.Model) -> bool:
    """Whether two MODELs of one checkpoint have different patches, objects or injections."""
    added, removed = patch_difference(base.patches, few_step.patches)
    kinds = ("object_patches", "injections", "hook_patches")
    keys = [[set(getattr(model, kind, ())) for kind in kinds] for model in (base, few_step)]
    return bool(added or removed) or keys[0] != keys[1]


class AnchoredSampler:
    """DP-DMD Anchored Sampler."""

    DISPLAY_NAME = "DP-DMD Anchored Sampler"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "For more variety from a few-step LoRA, ours or not: the base model samples to the level "
        "where the LoRA's first step ends, and the LoRA goes on from there. Style LoRAs belong on "
        "both models. Where ComfyUI can, the LoRA is switched on in the loaded model without "
        "patching its weights again (measured on a CPU, 111 M weights, four evaluations: 0.80 s a "
        "image, 1.02 s if patched, 0.62 s for the LoRA alone)."
    )
    SEARCH_ALIASES = (
        "diversity", "hybrid sampler", "few step", "4 step", "dmd2", "lightning", "turbo", "hyper",
        "lcm", "tcd",
    )  # fmt: skip
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The sampled latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        negative = "For the base model's guided steps; it may be an empty prompt."
        few_step = "The same model behind the loader of the few-step LoRA."
        return {
            "required": {
                "base_model": node_input("MODEL", "The model without the few-step LoRA."),
                "few_step_model": node_input("MODEL", few_step),
                "positive": POSITIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "settings": SETTINGS,
                "anchor": ANCHOR,
                "anchor_steps": ANCHOR_STEPS,
                "base_cfg": BASE_CFG,
                "solver": SOLVER,
                "steps": STEPS,
                "denoise": DENOISE,
            },
            "optional": {"negative": node_input("CONDITIONING", negative), "recipe": RECIPE},
        }

    def sample(
        self,
        base_model: models.Model,
        few_step_model: models.Model,
        positive: sampling.Conditioning,
        latent_image: sampling.Latent,
        seed: int,
        negative: sampling.Conditioning | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Sample both parts.

        Raises:
            DPDMDError: settings that cannot be sampled, two MODELs that are the same, or guidance
                without a negative prompt.
        """
        plan = Request(**settings).plan(base_model, few_step_model)
        for guidance in (plan.base_guidance, plan.guidance_scale):
            check_negative(guidance, negative, base_model)
        way = switch(base_model, few_step_model)
        subject = sampling.Subject(positive, negative, latent_image, seed)
        latent = sample_both(plan, base_model, way, subject)
        return running.outcome(f"{plan.describe()}\n{way.note}", (latent,))


def sample_both(
    plan: AnchoredPlan, base: models.Model, way: Switch, subject: sampling.Subject
) -> sampling.Latent:
    """One latent through both parts; the model is as before, however this ends."""
    both = AnchoredTrajectory(plan)

    def student_part(
        model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        noise = sampling.noise_sampler(x, subject.seed)
        with way.inside():
            return both.student_part(model, x, sigmas, *rest, noise_sampler=noise, **named)

    parts = (
        (base, both.base_part, plan.base_sigmas, plan.base_guidance),
        (way.model, student_part, plan.student_sigmas, plan.guidance_scale),
    )
    latent, done = subject.latent, 0
    for model, part, sigmas, guidance in parts:
        trajectory = sampling.Trajectory(
            sampling.sampler_object(sampling.on_console(part), {}), sigmas, guidance
        )
        latent = sampling.sample(model, trajectory, subject, done=done, total=plan.num_steps)
        done += trajectory.num_steps
    return latent


NODES = (AnchoredSampler,)
