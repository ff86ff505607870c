"""How a LoRA is used in hosts, from its recipe: what they are told, a program for diffusers."""

from __future__ import annotations

from ...core.families import family
from ...core.recipe.recipe import Recipe, used_clip_skip
from .facts import PackageFacts

SAMPLER, SCHEDULE = "Euler", "Simple"


def clip_skip(recipe: Recipe) -> int:
    """CLIP layers to skip, counted as hosts do; 1 is none."""
    return used_clip_skip(recipe) or 1


def reads_in_diffusers(facts: PackageFacts) -> bool:
    """Whether diffusers loads the file: it converts kohya's names of most families."""
    return family(facts.family).sharing.diffusers_reads_kohya or facts.file_format == "peft"


def unshifted_sigmas(recipe: Recipe) -> list[float]:
    """The sigmas as diffusers' flow scheduler takes them, before it shifts them."""
    shift = recipe.shift or 1.0
    return [round(s / (shift - (shift - 1) * s), 6) for s in recipe.sigmas[:-1]]


def diffusers_program(facts: PackageFacts) -> str:
    """A program that walks the recipe's sigmas or timesteps in diffusers."""
    recipe, (width, height) = facts.recipe, facts.size
    pipeline = family(facts.family).sharing.pipeline
    flow = recipe.prediction == "flow"
    scheduler = "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler"
    options = [f"shift={recipe.shift or 1.0:g}"] if flow else ['timestep_spacing="trailing"']
    if recipe.prediction == "v":
        options.append('prediction_type="v_prediction"')
    if recipe.zero_terminal_snr:
        options.append("rescale_betas_zero_snr=True")
    levels = unshifted_sigmas(recipe) if flow else [round(t) for t in recipe.timesteps]
    skipped = clip_skip(recipe) - 1
    clip = f"    clip_skip={skipped},\n" if skipped else ""
    return f'''\
import torch
from diffusers import {", ".join(sorted((scheduler, pipeline)))}

pipe = {pipeline}.from_single_file("checkpoint.safetensors", torch_dtype=torch.float16)
pipe.scheduler = {scheduler}.from_config(
    pipe.scheduler.config, {", ".join(options)}
)
pipe.load_lora_weights(".", weight_name="{facts.file}")
pipe.to("cuda")
image = pipe(
    "your prompt",
    {"sigmas" if flow else "timesteps"}={levels},
    guidance_scale={recipe.guidance_scale:g},
    width={width},
    height={height},
{clip}    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("image.png")
'''
