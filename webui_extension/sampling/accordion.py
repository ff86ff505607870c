"""The accordion in txt2img and img2img: few-step LoRAs set themselves up."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ...app.gui.widgets.html import piece
from ...core.recipe.anchored import MAX_ANCHOR_STEPS, AskedAnchor
from ...core.recipe.known_students import KNOWN_STUDENTS
from ..host import loras, models, page, scripts
from . import attention, infotext
from .auto_setup import ANCHORS, FROM_FILE, OFF, Choices, Setup, look
from .generation import Anchor, Told, lora_in, tell
from .sampler import NAME

TITLE = "DP-DMD few-step LoRAs"
AUTO_SETUP = "dpdmd_auto_setup"
GUIDANCE = "CFG Scale"
"""The host's name of an X/Y/Z plot's axis."""
NO_ANCHOR = (
    "This web UI cannot take one LoRA off alone, so the first step was not anchored. A1111 and "
    "Forge can."
)
ANCHOR_HELP = (
    "Anchored: the base model samples the first part of the trajectory without the LoRA, which "
    "restores diversity; 0 is as in training. Taking the LoRA off and on again adds about a tenth "
    "to the time of 4 steps."
)
NOTHING = "No few-step LoRA in the prompt."
UNTOUCHED = "Sampler, steps and CFG stay as you set them."


def register() -> None:
    """Give the host the script; the host makes it anew on every UI reload."""
    scripts.add_script(make_script())
    page.on("infotext_pasted", infotext.paste)


def make_script() -> type:
    """The host's kind of script."""
    base: Any = scripts.script_base()

    class FewStepScript(base):
        """Reads the prompt before a generation and sets what its few-step LoRA asks for."""

        def title(self) -> str:
            """The name by which the API calls it."""
            return TITLE

        def ui(self, is_img2img: bool) -> list[Any]:
            """The controls, whose values come back to `process`."""
            tab = "img2img" if is_img2img else "txt2img"
            controls, said = build(tab)
            self.infotext_fields = list(zip(controls, infotext.CONTROLS, strict=False))
            self.paste_field_names = list(infotext.CONTROLS)
            prompt = scripts.prompt_box(tab)
            if prompt is not None:
                inputs = [prompt, *controls]
                for each in (prompt, *controls):
                    each.change(say, inputs, [said], queue=False, show_progress="hidden")
            return controls

        def process(self, p: scripts.Processing, *values: Any) -> None:
            """Set up one generation: here its checkpoint is loaded, and its own options hold."""
            set_up(p, choices_of(values))

    return FewStepScript


def build(tab: str) -> tuple[list[Any], Any]:
    """(controls, where the findings are said)."""
    enabled = bool(page.option(AUTO_SETUP, True))
    with gr.Accordion(TITLE, open=False, elem_id=f"dpdmd_{tab}_accordion"):
        said = gr.HTML(paragraph(f"{NOTHING} {UNTOUCHED}"), elem_id=f"dpdmd_{tab}_said")
        on = gr.Checkbox(enabled, label="Set sampler, steps and CFG from the LoRA in the prompt")
        with gr.Row():
            kind = gr.Dropdown(
                [FROM_FILE, *KNOWN_STUDENTS], value=FROM_FILE, label="Kind of few-step LoRA"
            )
            lora = gr.Textbox(
                "", label="Its name", placeholder="only if the prompt has several LoRAs"
            )
        with gr.Row():
            anchor = gr.Dropdown(list(ANCHORS), value=OFF, label="Anchored first step")
            steps = gr.Slider(0, MAX_ANCHOR_STEPS, value=0, step=1, label="Guided steps")
            scale = gr.Slider(0, 30, value=0, step=0.5, label="Their CFG")
        gr.HTML(paragraph(ANCHOR_HELP))
        kernel = gr.Radio(
            list(attention.CHOICES),
            value=attention.HOST,
            label="Attention (with the DP-DMD sampler)",
        )
    return [on, kind, lora, anchor, steps, scale, kernel], said


def choices_of(values: tuple[Any, ...]) -> Choices:
    """The accordion's values; what the API leaves out keeps its default."""
    defaults = (bool(page.option(AUTO_SETUP, True)), FROM_FILE, "", OFF, 0, 0.0, attention.HOST)
    on, kind, lora, anchor, steps, scale, kernel = (*values, *defaults[len(values) :])[:7]
    return Choices(
        enabled=bool(on),
        kind=str(kind) if kind in KNOWN_STUDENTS else "",
        lora=str(lora or "").strip(),
        anchor=str(anchor) if anchor in ANCHORS else OFF,
        anchor_steps=min(MAX_ANCHOR_STEPS, max(0, int(steps or 0))),
        base_guidance=max(0.0, float(scale or 0)),
        attention=str(kernel) if kernel in attention.CHOICES else attention.HOST,
    )


def found_in(prompts: list[str], choices: Choices, *, fresh: bool = False) -> Setup:
    """What some prompts ask for; `fresh` finds LoRAs that came after the host's start, too."""
    find = partial(loras.lora_path, fresh=fresh)
    return look(prompts, models.model_facts(), choices, read=lora_in, find=find)


def set_up(p: scripts.Processing, choices: Choices) -> None:
    """Set sampler, steps and guidance of a generation, and say so."""
    tell(p, Told(attention=choices.attention))
    said = attention.note(choices.attention)
    if said:
        scripts.comment(p, f"DP-DMD: {said}")
    setup = found_in(scripts.prompts_of(p), choices, fresh=True)
    if not choices.enabled:
        unused = infotext.SWITCHED_OFF if setup.recipe is not None else ""
        p.extra_generation_params.update(infotext.written(choices, unused, ""))
        return
    for note in setup.notes:
        scripts.comment(p, f"DP-DMD: {note}")
    if setup.recipe is None:
        return
    plotted = scripts.plotted_axes(p)
    scripts.set_settings(p, NAME, setup.recipe.num_steps, setup.recipe.guidance_scale, plotted)
    anchor = anchor_for(setup, choices, float(p.cfg_scale) if GUIDANCE in plotted else 0.0)
    if anchor is not None and not loras.can_take_loras_off():
        scripts.comment(p, f"DP-DMD: {NO_ANCHOR}")
        anchor = None
    tell(p, Told(setup.recipe, anchor, choices.attention, choices.kind))
    if anchor is not None:
        p.cfg_scale = anchor.guidance  # else Forge would prepare no negative prompt
    anchored = anchor.describe() if anchor is not None else ""
    p.extra_generation_params.update(infotext.written(choices, setup.describe(), anchored))


def anchor_for(setup: Setup, choices: Choices, plotted: float = 0.0) -> Anchor | None:
    """The base model's part, None where the LoRA samples the whole trajectory.

    Args:
        plotted: guidance that an X/Y/Z plot sets; 0 for none.
    """
    if choices.anchor == OFF or setup.recipe is None:
        return None
    guidance = plotted or choices.base_guidance or None
    asked = AskedAnchor(choices.anchor, choices.anchor_steps, guidance)
    return Anchor(setup.loras, asked.count, asked.guidance_for(setup.recipe))


def say(prompt: str, *values: Any) -> str:
    """The findings as the accordion shows them."""
    choices = choices_of(values)
    if not choices.enabled:
        return paragraph("Switched off: everything stays as you set it.")
    setup = found_in([prompt], choices)
    if setup.recipe is not None:
        first = f"Will be set for {setup.names()}: sampler {NAME}, {setup.settings()}."
    else:
        first = UNTOUCHED if setup.notes else f"{NOTHING} {UNTOUCHED}"
    lines = [first, *setup.notes, attention.note(choices.attention)]
    return "".join(paragraph(line, warning=number > 0) for number, line in enumerate(lines) if line)


def paragraph(text: str, *, warning: bool = False) -> str:
    """A line of the accordion."""
    kind = "dpdmd-warning" if warning else "dpdmd-said"
    return piece("paragraph", text, kind)
