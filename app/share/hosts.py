"""How a LoRA is used in each host, from its recipe: the settings, and a program for diffusers."""

from __future__ import annotations

from ...core.recipe.recipe import Recipe
from .blocks import Block, Bullets, Code, Part, Program, Strong, Table, paragraph
from .facts import LORA_STRENGTH, PackageFacts

SAMPLER, SCHEDULE = "Euler", "Simple"
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
}


def clip_skip(recipe: Recipe) -> int:
    """CLIP layers to skip, counted as hosts do; 1 is none."""
    return (recipe.clip_skip or 1) if recipe.family == "sd1" else 1


def settings_table(facts: PackageFacts) -> Table:
    """The settings that hold in every host."""
    recipe, (width, height) = facts.recipe, facts.size
    rows = [
        ("Sampler", SAMPLER),
        ("Schedule type", SCHEDULE),
        ("Steps", str(recipe.num_steps)),
        ("CFG scale", f"{recipe.guidance_scale:g}"),
        ("LoRA strength", f"{LORA_STRENGTH:.1f}"),
        ("Size", " or ".join(f"{w} x {h}" for w, h in recipe.resolutions or ((width, height),))),
        ("Checkpoint", facts.teacher),
    ]
    if clip_skip(recipe) > 1:
        rows.append(("Clip skip", str(clip_skip(recipe))))
    if recipe.shift is not None:
        rows.append(("Shift", f"{recipe.shift:g}"))
    for name, strength in facts.with_loras:
        rows.append(("Together with", f"{name} at {strength:g}"))
    rows.append(("Trigger words", ", ".join(facts.trigger_words) or "none needed"))
    return Table(("Setting", "Value"), tuple(rows))


def host_blocks(facts: PackageFacts) -> list[Block]:
    """What to do in each host."""
    items = _host_items(facts) if facts.file_format == "kohya" else _peft_items(facts)
    blocks: list[Block] = [Bullets(tuple(items))]
    if reads_in_diffusers(facts):
        blocks += [paragraph("In diffusers:"), Program(diffusers_program(facts))]
    else:
        blocks.append(
            paragraph(
                "diffusers reads no SD3 LoRA with these key names. For it, distil with ",
                Code("--format peft"),
                ".",
            )
        )
    return blocks


def _host_items(facts: PackageFacts) -> list[tuple[Part, ...]]:
    recipe = facts.recipe
    steps, scale = str(recipe.num_steps), f"{recipe.guidance_scale:g}"
    graph = f"sampler_name euler, scheduler simple, steps {steps}, cfg {scale}, denoise 1"
    shift = ""
    if recipe.shift is not None:
        shift = f" ModelSamplingSD3 with shift {recipe.shift:g} stands between LoRA and KSampler."
    clip = f", Clip skip {clip_skip(recipe)}" if clip_skip(recipe) > 1 else ""
    return [
        (
            Strong("ComfyUI"), ": put ", Code(facts.file),
            " into models/loras and drag workflow.json onto the canvas. By hand: "
            f"LoraLoaderModelOnly with strength 1.0, then KSampler with {graph}.{shift} With the "
            "nodes of DP-DMD Studio: DP-DMD Load LoRA, then DP-DMD KSampler, which set themselves.",
        ),
        (
            Strong("A1111, Forge, reForge"), ": put the file into models/Lora, write ",
            Code(facts.tag),
            f" into the prompt and choose Sampling method {SAMPLER}, Schedule type {SCHEDULE}, "
            f"Sampling steps {steps}, CFG Scale {scale}{clip}.{_webui_limits(facts)} With the "
            "extension DP-DMD Studio these settings are made by themselves.",
        ),
    ]  # fmt: skip


def _webui_limits(facts: PackageFacts) -> str:
    if facts.family != "sd3":
        return ""
    if "3.5" in facts.checkpoint.detection.title:
        return " A1111 knows no SD 3.5 and Forge Neo no SD3 at all."
    return " Forge Neo knows no SD3."


def _peft_items(facts: PackageFacts) -> list[tuple[Part, ...]]:
    if facts.family == "sd3":
        text = (
            ": this file has diffusers' key names, which ComfyUI reads for SD3: "
            f"LoraLoaderModelOnly with strength 1.0, KSampler with euler, simple, "
            f"{facts.recipe.num_steps} steps, cfg {facts.recipe.guidance_scale:g}. "
            "Forge does not read it."
        )
        return [(Strong("ComfyUI"), text)]
    return [
        (
            Strong("ComfyUI, A1111, Forge"),
            ": not for these. The file has diffusers' key names, of which they apply a part or "
            "nothing. Distil without ",
            Code("--format peft"),
            " for them.",
        )
    ]


def reads_in_diffusers(facts: PackageFacts) -> bool:
    """Whether diffusers loads the file: it converts kohya's names except for SD3."""
    return facts.family != "sd3" or facts.file_format == "peft"


def unshifted_sigmas(recipe: Recipe) -> list[float]:
    """The noise levels as diffusers' flow scheduler takes them, before it shifts them."""
    shift = recipe.shift or 1.0
    return [round(s / (shift - (shift - 1) * s), 6) for s in recipe.sigmas[:-1]]


def diffusers_program(facts: PackageFacts) -> str:
    """A program that walks the recipe's noise levels in diffusers."""
    recipe, pipeline, (width, height) = facts.recipe, PIPELINES[facts.family], facts.size
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
picture = pipe(
    "your prompt",
    {"sigmas" if flow else "timesteps"}={levels},
    guidance_scale={recipe.guidance_scale:g},
    width={width},
    height={height},
{clip}    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
picture.save("picture.png")
'''
