"""DP-DMD Compare Seeds: images of several models at several seeds, with their diversity."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import NonFiniteError
from ...core.images.diversity import LAYOUT_TITLE, layout_vectors, sample_diversity
from ...core.images.seed_sheet import Row, seed_sheet
from ...core.recipe.anchored import evaluations_per_step
from ...core.recipe.few_step import counted
from ..host import models, running, sampling
from ..host.inputs import node_input, seed_input
from .few_step import check_negative, trajectory_of
from .recipes import find_recipe, has_recipe

ARMS = ("a", "b", "c", "d")
MAX_SEEDS = 64


@dataclass(frozen=True)
class Arm:
    """A model with how it is sampled; `kind` says that in a few words."""

    label: str
    model: models.Model
    trajectory: sampling.Trajectory
    kind: str
    note: str = ""

    @property
    def num_evaluations(self) -> int:
        """Network evaluations for one image."""
        guidance = self.trajectory.guidance_scale
        return self.trajectory.num_steps * evaluations_per_step(guidance)


@dataclass(frozen=True)
class Drawn:
    """An arm's images, uint8 (H, W, 3), and what they cost and are worth."""

    arm: Arm
    images: list[np.ndarray]
    seconds: float
    diversity: float


def arm_of(name: str, label: str, model: models.Model, base_steps: int, base_cfg: float) -> Arm:
    """The arm of a MODEL: by its recipe where it carries one, otherwise as a teacher.

    Raises:
        DPDMDError: its recipe does not fit or cannot be read.
    """
    letter = name.upper()
    title = f"{letter}: {label.strip()}" if label.strip() else letter
    source = f"model_{name}"
    if has_recipe(model, source):
        plan = find_recipe(model, source=source).plan
        return Arm(title, model, trajectory_of(plan), "by its recipe", plan.note)
    trajectory = sampling.core_trajectory(model, base_steps, base_cfg)
    return Arm(title, model, trajectory, "euler, simple")


def sample_arms(
    arms: Sequence[Arm], subject: sampling.Subject, seeds: Sequence[int]
) -> list[tuple[list[Tensor], float]]:
    """(latents, median seconds of an image) of every arm; one image at a time, one arm a time.

    So every image is what core's KSampler samples with its seed, and no weights are patched between
    the images of an arm.
    """
    total = sum(arm.trajectory.num_steps for arm in arms) * len(seeds)
    done, found = 0, []
    for arm in arms:
        latents, seconds = [], []
        for seed in seeds:
            begun = time.perf_counter()
            one = replace(subject, seed=seed)
            latent = sampling.sample(arm.model, arm.trajectory, one, done=done, total=total)
            seconds.append(time.perf_counter() - begun)
            latents.append(latent["samples"])
            done += arm.trajectory.num_steps
        found.append((latents, statistics.median(seconds)))
    return found


def as_image(image: Tensor) -> np.ndarray:
    """A decoded image, values 0 .. 1, shape (1, H, W, 3) or (1, 1, H, W, 3), as uint8.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    flat = image.reshape(-1, *image.shape[-3:])[0, ..., :3]
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteError(
            "An image came out as NaN or infinity, which would be shown black. The model or the "
            "VAE goes beyond float16: start ComfyUI with --bf16-unet or --fp32-vae, or lower a "
            "prompt's weights, the CFG or a LoRA's strength."
        )
    return (flat.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def single(latent: sampling.Latent) -> tuple[sampling.Latent, str]:
    """(the first latent of a batch, a note if there were more)."""
    samples = latent["samples"]
    one = {key: value for key, value in latent.items() if key != "batch_index"}
    one["samples"] = samples[:1]
    if (mask := latent.get("noise_mask")) is not None:
        one["noise_mask"] = mask[:1]
    note = f"Only the first of {len(samples)} latents is used." if len(samples) > 1 else ""
    return one, note


def report(drawn: Sequence[Drawn], seeds: Sequence[int], notes: Sequence[str]) -> str:
    """The numbers as text: a line for every arm."""
    lines = [
        f"Seeds {seeds[0]} to {seeds[-1]}. Diversity is 1 - mean cosine of all pairs of images; "
        f"feature: {LAYOUT_TITLE}."
    ]
    lines += [f"{one.arm.label}: {facts(one, drawn[0].diversity)}" for one in drawn]
    lines += [f"{one.arm.label}: {one.arm.note}" for one in drawn if one.arm.note]
    return "\n".join([*lines, *filter(None, notes)])


def facts(drawn: Drawn, reference: float) -> str:
    """Diversity, evaluations and seconds of an arm in one line."""
    arm, num_steps = drawn.arm, drawn.arm.trajectory.num_steps
    share = f" ({drawn.diversity / reference:.0%} of A)" if reference > 1e-6 else ""
    steps, evaluations = counted(num_steps, "step"), counted(arm.num_evaluations, "evaluation")
    return (
        f"diversity {drawn.diversity:.3f}{share}, {arm.kind}, {steps}, CFG "
        f"{arm.trajectory.guidance_scale:g}, {evaluations}, {drawn.seconds:.2f} s an image"
    )


class CompareSeeds:
    """DP-DMD Compare Seeds."""

    DISPLAY_NAME = "DP-DMD Compare Seeds"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Samples the same seeds with up to four models: a row per model, a column per "
        "seed, and how much the images of a row differ. A model that carries a recipe is sampled "
        "by it, any other one as a teacher: euler, simple, base_steps, base_cfg."
    )
    SEARCH_ALIASES = ("seed grid", "diversity", "xy plot", "compare models", "contact sheet")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    OUTPUT_TOOLTIPS = (
        "All images on one labelled sheet.",
        "Diversity, network evaluations and seconds of every model.",
    )
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        of_base = "of models without a recipe."
        guided = "For models that are sampled with guidance; it may be empty."
        first = "The first model; diversity is compared with its own."
        seeds = {"default": 4, "min": 2, "max": MAX_SEEDS}
        steps = {"default": 28, "min": 1, "max": 1000}
        cfg = {"default": 7.0, "min": 0.0, "max": 100.0, "step": 0.1}
        label = node_input("STRING", "What the model's row is called.", default="")
        optional = {"negative": node_input("CONDITIONING", guided)}
        for name in ARMS[1:]:
            optional[f"model_{name}"] = node_input("MODEL", "Another model to compare.")
            optional[f"label_{name}"] = label
        return {
            "required": {
                "positive": node_input("CONDITIONING", "The prompt of all images."),
                "vae": node_input("VAE", "Decodes the images."),
                "latent_image": node_input("LATENT", "An empty latent of the wanted size."),
                "model_a": node_input("MODEL", first),
                "first_seed": seed_input("The others follow it."),
                "num_seeds": node_input("INT", "Images of every model.", **seeds),
                "base_steps": node_input("INT", f"Steps {of_base}", **steps),
                "base_cfg": node_input("FLOAT", f"Guidance {of_base}", **cfg),
                "label_a": label,
            },
            "optional": optional,
        }

    def compare(
        self,
        positive: sampling.Conditioning,
        vae: Any,
        latent_image: sampling.Latent,
        first_seed: int,
        num_seeds: int,
        base_steps: int,
        base_cfg: float,
        negative: sampling.Conditioning | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Sample, measure and lay out.

        Raises:
            DPDMDError: a model that cannot be sampled, or guidance without a negative prompt.
        """
        arms = [
            arm_of(name, others.get(f"label_{name}") or "", model, base_steps, base_cfg)
            for name in ARMS
            if (model := others.get(f"model_{name}")) is not None
        ]
        for arm in arms:
            check_negative(arm.trajectory.guidance_scale, negative, arm.model)
        latent, note = single(latent_image)
        seeds = range(first_seed, first_seed + num_seeds)
        sampled = sample_arms(arms, sampling.Subject(positive, negative, latent), seeds)
        drawn = []
        for arm, (latents, seconds) in zip(arms, sampled, strict=True):
            images = [as_image(vae.decode(latent)) for latent in latents]
            drawn.append(Drawn(arm, images, seconds, sample_diversity(layout_vectors(images))))
        text = report(drawn, seeds, [note])
        rows = [Row(d.arm.label, facts(d, drawn[0].diversity), d.images) for d in drawn]
        sheet = torch.from_numpy(np.asarray(seed_sheet(rows, seeds), dtype=np.float32) / 255)
        return running.outcome(text, (sheet[None], text))


NODES = (CompareSeeds,)
