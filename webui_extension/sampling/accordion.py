"""The accordion in txt2img and img2img: few-step LoRAs set themselves up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from ...app.gui.widgets.html import piece
from ...core.recipe.anchored import MAX_ANCHOR_STEPS, AskedAnchor
from ...core.recipe.known_students import KNOWN_STUDENTS
from ...core.recipe.recipe import MAX_STEPS, used_clip_skip
from ..host import loras, models, page, scripts
from . import attention, infotext
from .auto_setup import ANCHORS, FROM_FILE, OFF, Choices, Setup, hires_note, look, size_note
from .generation import Anchor, Told, anchor_of, lora_in, tell
from .sampler import NAME

TITLE = "DP-DMD few-step LoRAs"
AUTO_SETUP = "dpdmd_auto_setup"
CLIP_SKIP = "CLIP_stop_at_last_layers"
"""The host's option."""
GUIDANCE = "CFG Scale"
"""The host's name of an X/Y/Z plot's axis."""
NO_ANCHOR = (
    "This web UI cannot take one LoRA off alone, so the first step is not anchored. A1111, Forge, "
    "reForge and Forge Neo of November 2026 can."
)
OTHER_SAMPLER = f"Only the sampler {NAME} anchors the first step; this image has another one."
NO_NEGATIVE = (
    "At CFG 1 the negative prompt does nothing: say in the prompt what should be there instead, or "
    "distil a LoRA with the negative prompt that you always use."
)
ANCHOR_HELP = (
    "Anchored: the base model samples the first part of the trajectory without the LoRA, which "
    "restores diversity; 0 is as in training. Taking the LoRA off and on again adds about a tenth "
    "to the time of 4 steps."
)
NOTHING = "No few-step LoRA in the prompt."
UNTOUCHED = "Sampler, steps and CFG stay as you set them."
OFFER = "Choose "
MOST_STEPS = 16
"""Of a few-step LoRA: the highest that their authors name is 8."""
SLIDERS = ("sampling", "scheduler", "steps", "cfg_scale")
"""The host's own controls that a button of ours fills, by the ends of their ids."""


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
            controls, shown = build(tab)
            shaping = [*controls[:6], controls[7]]  # attention shapes no image
            self.infotext_fields = list(zip(shaping, infotext.CONTROLS, strict=True))
            self.paste_field_names = list(infotext.CONTROLS)
            prompt = scripts.component(f"{tab}_prompt")
            if prompt is not None:
                inputs = [prompt, *controls]
                for each in inputs:
                    each.change(show, inputs, shown, queue=False, show_progress="hidden")
                send = shown[-1]
                names = [f"{tab}_{name}" for name in SLIDERS]
                scripts.when_made(names, partial(_fill_on_click, send, inputs))
            return controls

        def before_process(self, p: scripts.Processing, *values: Any) -> None:
            """Ask the host for the LoRA's clip skip, before it puts its options in force."""
            ask_clip_skip(p, choices_of(values))

        def process(self, p: scripts.Processing, *values: Any) -> None:
            """Set up one generation: here its checkpoint is loaded, and its own options hold."""
            set_up(p, choices_of(values))

        def process_batch(self, p: scripts.Processing, *values: Any, **options: Any) -> None:
            """Have the negative prompt prepared where the base model needs it."""
            prepare_guidance(p)

    return FewStepScript


def _fill_on_click(button: Any, inputs: list[Any], controls: Sequence[Any]) -> None:
    button.click(slider_values, inputs, list(controls), queue=False, show_progress="hidden")


def build(tab: str) -> tuple[list[Any], list[Any]]:
    """(controls, what `show` fills: findings, title, the offered kind's button, *send*)."""
    enabled = bool(page.option(AUTO_SETUP, True))
    with gr.Accordion(TITLE, open=False, elem_id=f"dpdmd_{tab}_accordion") as accordion:
        said = gr.HTML(paragraph(f"{NOTHING} {UNTOUCHED}"), elem_id=f"dpdmd_{tab}_said")
        with gr.Row():
            offer = gr.Button("", visible=False, elem_id=f"dpdmd_{tab}_offer")
            send = gr.Button("Send to the sliders", visible=False, elem_id=f"dpdmd_{tab}_send")
        on = gr.Checkbox(enabled, label="Set sampler, steps and CFG from the LoRA in the prompt")
        with gr.Row():
            kind = gr.Dropdown(
                [FROM_FILE, *KNOWN_STUDENTS], value=FROM_FILE, label="Kind of few-step LoRA"
            )
            lora = gr.Textbox("", label="Its name, if there are several")
            own = gr.Slider(0, MOST_STEPS, value=0, step=1, label="Its steps (0: as trained)")
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
    offer.click(offered_kind, [offer], [kind], queue=False, show_progress="hidden")
    # the newest control is last: those who call the API send values by their places
    return [on, kind, lora, anchor, steps, scale, kernel, own], [said, accordion, offer, send]


def offered_kind(label: str) -> Any:
    """The kind that the button offers, for the list of kinds."""
    kind = str(label).removeprefix(OFFER)
    return gr.update(value=kind) if kind in KNOWN_STUDENTS else gr.update()


def choices_of(values: tuple[Any, ...]) -> Choices:
    """The accordion's values; what the API leaves out, or gets wrong, keeps its default."""
    defaults = (bool(page.option(AUTO_SETUP, True)), FROM_FILE, "", OFF, 0, 0.0, attention.HOST, 0)
    on, kind, lora, anchor, steps, scale, kernel, own = (*values, *defaults[len(values) :])[:8]
    return Choices(
        enabled=_switch(on, defaults[0]),
        kind=kind if isinstance(kind, str) and kind in KNOWN_STUDENTS else "",
        lora=str(lora or "").strip(),
        anchor=anchor if isinstance(anchor, str) and anchor in ANCHORS else OFF,
        anchor_steps=int(_number(steps, MAX_ANCHOR_STEPS)),
        base_guidance=_number(scale, 1000),
        attention=kernel
        if isinstance(kernel, str) and kernel in attention.CHOICES
        else attention.HOST,
        steps=int(_number(own, MAX_STEPS)),
    )


def _switch(value: Any, default: bool) -> bool:
    """A switch of the API, which may be words."""
    if isinstance(value, str):
        words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
        return words.get(value.strip().lower(), default)
    return default if value is None else bool(value)


def _number(value: Any, highest: float) -> float:
    """A number from 0 to the highest; 0 for what is none."""
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        return 0.0
    return min(highest, max(0.0, number)) if number == number else 0.0


def found_in(prompts: list[str], choices: Choices, *, fresh: bool = False) -> Setup:
    """What some prompts ask for; `fresh` finds LoRAs that came after the host's start, too."""
    find = partial(loras.listed, fresh=fresh)
    return look(prompts, models.model_facts(), choices, read=lora_in, find=find)


def ask_clip_skip(p: scripts.Processing, choices: Choices) -> None:
    """Have the clip skip that the prompt's few-step LoRA was trained with, unless another is asked.

    The checkpoint may not be loaded yet, so whether the LoRA is for it is not known here.
    """
    if not choices.enabled or scripts.is_second_pass(p):
        return
    find = partial(loras.listed, fresh=True)
    setup = look(scripts.prompts_of(p), None, choices, read=lora_in, find=find)
    skip = used_clip_skip(setup.recipe) if setup.recipe is not None else None
    if skip is not None:
        scripts.override(p, CLIP_SKIP, skip)


def clip_note(setup: Setup) -> str:
    """The note that another clip skip is in force than the LoRA was trained with; "" if not."""
    wanted = used_clip_skip(setup.recipe) if setup.recipe is not None else None
    here = page.option(CLIP_SKIP, wanted)
    if wanted is None or int(here) == wanted:
        return ""
    return (
        f"{setup.names()} was trained with clip skip {wanted}; this generation asks for "
        f"{int(here)}."
    )


def set_up(p: scripts.Processing, choices: Choices) -> None:
    """Set sampler, steps and guidance of a generation, and say so."""
    tell(p, Told(attention=choices.attention))
    if not scripts.is_second_pass(p):  # the images of an X/Y/Z plot share one dictionary
        for name in infotext.WRITTEN:
            p.extra_generation_params.pop(name, None)
    said = attention.note(choices.attention)
    if said:
        scripts.comment(p, f"DP-DMD: {said}")
    setup = found_in(scripts.prompts_of(p), choices, fresh=True)
    if not choices.enabled:
        unused = infotext.SWITCHED_OFF if setup.recipe is not None else ""
        p.extra_generation_params.update(infotext.written(choices, unused, ""))
        return
    anchored = ""
    notes = list(setup.notes)
    if setup.recipe is not None and scripts.is_second_pass(p):
        # of an image that was set up already: its maker's settings stay
        tell(p, Told(setup.recipe, None, choices.attention, choices.kind, setup.loras))
    elif setup.recipe is not None:
        plotted = scripts.plotted_axes(p)
        settings = (NAME, setup.steps, setup.recipe.guidance_scale)
        scripts.set_settings(p, *settings, plotted)
        anchor = anchor_for(setup, choices, float(p.cfg_scale) if GUIDANCE in plotted else 0.0)
        if anchor is not None and not loras.can_take_loras_off():
            notes.append(NO_ANCHOR)
            anchor = None
        if anchor is not None and p.sampler_name != NAME:  # in a plot of samplers
            notes.append(OTHER_SAMPLER)
            anchor = None
        tell(p, Told(setup.recipe, anchor, choices.attention, choices.kind, setup.loras))
        anchored = anchor.describe() if anchor is not None else ""
        notes += [size_note(setup, int(p.width), int(p.height)), clip_note(setup)]
    find = partial(loras.listed, fresh=True)
    notes.append(hires_note(setup, scripts.hires_prompts_of(p), read=lora_in, find=find))
    say_notes(p, [note for note in notes if note])
    if setup.recipe is not None:
        p.extra_generation_params.update(infotext.written(choices, setup.describe(), anchored))


def say_notes(p: scripts.Processing, notes: Sequence[str]) -> None:
    """Show notes below the image, and put them where programs that use the API find them."""
    for note in notes:
        scripts.comment(p, f"DP-DMD: {note}")
    hints = {student.hint for student in KNOWN_STUDENTS.values()}
    warnings = [note for note in notes if note not in hints]
    if warnings:
        p.extra_generation_params[infotext.NOTES] = " ".join(warnings)


def prepare_guidance(p: scripts.Processing) -> None:
    """Before prompts are encoded: Forge and its relatives leave the negative one out at CFG 1.

    Our sampler puts the few-step LoRA's own guidance back before it begins, so that no later pass
    of another extension takes over that of the anchored first step.
    """
    anchor = anchor_of(p)
    hires_alone = getattr(p, "txt2img_upscale", False)
    if anchor is not None and p.sampler_name == NAME and not hires_alone:
        p.cfg_scale = anchor.guidance


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


def slider_values(prompt: str, *values: Any) -> list[Any]:
    """Values for the host's sampler, schedule type, steps and CFG; no change without a recipe."""
    setup = found_in([prompt], choices_of(values))
    if setup.recipe is None:
        return [gr.update() for _ in SLIDERS]
    found = (NAME, NAME, setup.steps, setup.recipe.guidance_scale)
    return [gr.update(value=value) for value in found]


def show(prompt: str, *values: Any) -> list[Any]:
    """What the accordion shows of a prompt: findings, title, the offered kind, *send*."""
    choices = choices_of(values)
    setup = found_in([prompt], choices) if choices.enabled else Setup()
    offered = bool(setup.offered)
    return [
        say(setup, choices),
        gr.update(label=title(setup, choices)),
        gr.update(value=f"{OFFER}{setup.offered}", visible=offered),
        gr.update(visible=setup.recipe is not None),
    ]


def title(setup: Setup, choices: Choices) -> str:
    """The accordion's title: what will be in force."""
    if not choices.enabled:
        return f"{TITLE}: off"
    if setup.recipe is None:
        return f"{TITLE}: see inside" if setup.notes else TITLE
    parts = [f"sampler {NAME}", setup.settings()]
    anchor = anchor_for(setup, choices)
    if anchor is not None and loras.can_take_loras_off():
        parts.append(f"anchored: {anchor.describe()}")
    warned = " (see inside)" if setup.notes else ""
    return f"{TITLE}: {', '.join(parts)}{warned}"


def say(setup: Setup, choices: Choices) -> str:
    """The findings as the accordion shows them."""
    if not choices.enabled:
        return paragraph("Switched off: everything stays as you set it.")
    if setup.recipe is not None:
        first = f"Will be set for {setup.names()}: sampler {NAME}, {setup.settings()}."
    else:
        first = UNTOUCHED if setup.notes else f"{NOTHING} {UNTOUCHED}"
    wanted = choices.anchor != OFF and setup.recipe is not None
    impossible = NO_ANCHOR if wanted and not loras.can_take_loras_off() else ""
    negative = ""
    if setup.recipe is not None and setup.recipe.guidance_scale == 1.0 and choices.anchor == OFF:
        negative = NO_NEGATIVE
    lines = [first, negative, impossible, *setup.notes, attention.note(choices.attention)]
    plain = (first, negative)
    return "".join(paragraph(line, warning=line not in plain) for line in lines if line)


def paragraph(text: str, *, warning: bool = False) -> str:
    """A line of the accordion."""
    kind = "dpdmd-warning" if warning else "dpdmd-said"
    return piece("paragraph", text, kind)
