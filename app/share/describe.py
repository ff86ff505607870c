"""The description of a package: what it is, settings, measurements, limits, licence."""

from __future__ import annotations

from markupsafe import Markup

from ...core.families import family, stated_credits
from ...core.recipe.recipe import MergedLora, Recipe, is_unusual_flow, used_clip_skip
from ..report.templating import html_templates
from .facts import LORA_STRENGTH, PackageFacts
from .labels import license_note
from .markdown import TEMPLATES, markdown_templates
from .names import one_line, safe_name

TAGS = ("few-step", "distillation", "dp-dmd", "lora")
# Keys of the LoRA's metadata that say how it was trained, and their words.
TRAINING = {
    "ss_steps": "student updates",
    "ss_total_batch_size": "images an update",
    "ss_network_dim": "rank",
    "ss_learning_rate": "learning rate",
}
SAMPLER, SCHEDULE = "Euler", "Simple"


def description(facts: PackageFacts) -> str:
    """Everything as Markdown, in the order in which people read it."""
    return _rendered("description.md", facts)


def model_card(facts: PackageFacts) -> str:
    """README.md for Hugging Face: YAML front matter, then the description."""
    return _rendered("README.md", facts)


def _rendered(template: str, facts: PackageFacts) -> str:
    recipe, metadata = facts.recipe, facts.metadata
    own_license = safe_name(facts.license).lower() if facts.license else ""
    readable = reads_in_diffusers(facts)
    single = family(facts.family).sharing.from_single_file
    program = diffusers_program(facts).strip() if readable and single else ""
    return (
        markdown_templates()
        .get_template(template)
        .render(
            facts=facts,
            sharing=family(facts.family).sharing,
            family_label=family(facts.family).short_label,
            recipe=recipe,
            measured=facts.measured,
            sampler=SAMPLER,
            schedule=SCHEDULE,
            strength=LORA_STRENGTH,
            levels=", ".join(f"{level:g}" for level in recipe.sigmas),
            guidance=f"{recipe.guidance_scale:g}",
            shift="" if recipe.shift is None else f"{recipe.shift:g}",
            clip_skip=clip_skip(recipe),
            sizes=recipe.resolutions or (facts.size,),
            readable=readable,
            program=Markup(program),
            limits=limits(facts),
            training=[
                f"{words} {one_line(metadata[key], 60)}"
                for key, words in TRAINING.items()
                if metadata.get(key)
            ],
            license=license_text(facts),
            license_name=own_license or facts.base.license_name,
            tags=("text-to-image", family(facts.family).sharing.tag, *TAGS),
        )
    )


def description_page(title: str, body: str) -> str:
    """The description's HTML as a page that loads nothing from anywhere."""
    template = html_templates(TEMPLATES).get_template("description.html")
    return template.render(title=title, body=Markup(body))


def summary(facts: PackageFacts) -> str:
    """One sentence for cards."""
    return f"{facts.recipe.num_steps}-step LoRA of {facts.teacher}, to be used without guidance."


def limits(facts: PackageFacts) -> list[str]:
    """What it does not do, one sentence or two each."""
    recipe, found = facts.recipe, []
    if recipe.guidance_scale == 1.0:
        found.append(
            "A negative prompt does nothing at CFG 1, and a higher CFG oversaturates the "
            "image: guidance is part of the training."
        )
    found += [
        "Use it at strength 1.0; that is the strength it was trained at.",
        f"It was made for {_teacher_with_hash(facts)}. On another checkpoint it may work less well "
        "or change the style; that was not tested.",
        f"Other samplers, schedules and step counts than {recipe.plain_host} were not trained.",
    ]
    if is_unusual_flow(recipe):
        found.append(
            "The checkpoint is a rectified flow, and hosts do not see that in its file. ComfyUI "
            f"needs ModelSamplingSD3 with shift {recipe.shift or 1:g} before the sampler, reForge "
            "its Advanced Model Sampling (Flow), and Forge Neo a checkpoint whose name contains "
            "'rectified', each at that shift. A1111 samples it with the DP-DMD sampler alone."
        )
    found += [_beside(lora) for lora in recipe.merged_loras]
    if not facts.sampled_with_teacher:
        found.append(
            f"The images were sampled with {facts.checkpoint.file}, which is not the file that was "
            "distilled (its hash differs)."
        )
    if credited := stated_credits(facts.checkpoint.detection):
        found.append(f"The checkpoint learned from pictures of {credited}.")
    if facts.checkpoint.embedded:
        found.append(
            "The checkpoint is a small teacher that ships with DP-DMD Studio. "
            "Its text encoder exists only there, so hosts cannot read prompts with it; this "
            "package shows the form, not a model for everyday use."
        )
    return found


def _teacher_with_hash(facts: PackageFacts) -> str:
    short = facts.recipe.teacher_autov2
    return f"{facts.teacher} (hash {short})" if short else facts.teacher


def _beside(lora: MergedLora) -> str:
    name = f"{one_line(lora.name, 120)} at {lora.strength:g}"
    if lora.included:
        return f"It contains {name}; do not add that LoRA again."
    return (
        f"The checkpoint had {name} merged when it was distilled; use that LoRA together with it."
    )


def license_text(facts: PackageFacts) -> str:
    """What the uploader states, then what the base model asks for."""
    title, embedded = facts.checkpoint.detection.title, facts.checkpoint.embedded
    note = license_note(facts.family, title, embedded=embedded)
    own = f"The author states for this LoRA: {one_line(facts.license, 200)}. "
    return (own if facts.license else "") + note


# How hosts are told


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
    if is_unusual_flow(recipe):
        # the pipeline scales its input, which the flows' own class does not; of first order, this
        # one takes Euler's steps
        scheduler = "DPMSolverMultistepScheduler"
        options = [
            "use_flow_sigmas=True", 'prediction_type="flow_prediction"', "solver_order=1",
            f"flow_shift={recipe.shift or 1.0:g}",
        ]  # fmt: skip
    if recipe.prediction == "v":
        options.append('prediction_type="v_prediction"')
    if recipe.zero_terminal_snr:
        options.append("rescale_betas_zero_snr=True")
    if is_unusual_flow(recipe):
        grid = f"num_inference_steps={recipe.num_steps}"
    elif flow:
        grid = f"sigmas={unshifted_sigmas(recipe)}"
    else:
        grid = f"timesteps={[round(t) for t in recipe.timesteps]}"
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
    {grid},
    guidance_scale={recipe.guidance_scale:g},
    width={width},
    height={height},
{clip}    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("image.png")
'''
