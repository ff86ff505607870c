"""The Compare page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...jobs import made_loras
from ...library import choices as sources
from ..forms import compare as form
from ..forms.changes import Change, Values
from ..widgets.dropdown import dropdown
from ..widgets.html import heading
from ..widgets.runs_view import Address
from ..widgets.wiring import Components, Page, markup, note, on, several

AFTER_START = (*(f"{name}_note" for name in form.NOTES), "selected", "tabs")


def build(selected: Any, tabs: Any, address: Address | None) -> Page:
    """The page inside the caller's Blocks; arguments as the other pages'."""
    parts: Components = {"selected": selected, "tabs": tabs}
    first = form.initial() | opening({}, address)
    first["styles"]["value"] = []
    with gr.Row(elem_classes=["dp-columns"]):
        with gr.Column(scale=7, min_width=320, elem_classes=["dp-form"]):
            _models(parts, first)
            _prompts(parts, first)
        with gr.Column(scale=4, min_width=280, elem_classes=["dp-aside"]):
            _start(parts, first)
    with gr.Column(elem_classes=["dp-section", "dp-wide"]):
        markup(heading("Finished comparisons"))
        parts["chosen"] = dropdown(**first["chosen"], label="Comparison", allow_custom_value=True)
        parts["report"] = markup(first["report"])
    on(
        parts["chosen"].input,
        lambda values: form.show(values["chosen"], address),
        parts,
        ("chosen",),
        ("report",),
    )
    done = on(parts["start"].click, form.submit, parts, form.FORM, AFTER_START)
    return Page(parts, lambda values: opening(values, address), OPENED, (done,))


OPENED = ("checkpoint", "loras", "styles", "chosen", "report")


def opening(values: Values, address: Address | None) -> Values:
    """What the page shows when it is opened: new files in the lists; what was chosen stays."""
    loras = sources.loras(made_loras())
    listed = form.listing()
    found: Values = {
        "checkpoint": Change(choices=sources.checkpoints()),
        "loras": Change(choices=loras),
        "styles": Change(choices=loras),
        "chosen": listed,
    } | form.show(listed["value"], address)
    if not values.get("checkpoint"):
        found["checkpoint"]["value"] = found["checkpoint"]["choices"][0][1]
    if not values.get("loras"):
        found["loras"]["value"] = [value for _, value in loras[:1]]
    return found


def _models(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(
            heading(
                "Models", "Each LoRA is compared with the checkpoint at its full number of steps."
            )
        )
        parts["checkpoint"] = dropdown(
            **first["checkpoint"], label="Checkpoint file", allow_custom_value=True
        )
        parts["loras"] = several(
            first["loras"],
            "Few-step LoRAs to compare",
            "Any kind: yours, plain DMD, or by other makers.",
        )
        parts["strengths"] = _strengths()
        with gr.Accordion("Style LoRAs for every image", open=False):
            parts["styles"] = several(first["styles"], "Styles")
            parts["style_strengths"] = _strengths()
        parts["models_note"] = note()


def _strengths() -> Any:
    return gr.Textbox(
        value="",
        label="Their strengths",
        max_lines=1,
        info="Such as 0.8, 1. Empty: 1 each.",
    )


def _prompts(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("Prompts", "Best held out: prompts that were not trained on."))
        parts["prompts"] = gr.Textbox(
            value="",
            label="Evaluation prompts",
            lines=5,
            max_lines=12,
            info="One a line. The shapes demo needs none: it brings its own.",
        )
        parts["prompts_note"] = note()
        with gr.Row():
            parts["seeds"] = gr.Textbox(
                value=first["seeds"], label="Seeds", max_lines=1, info="Such as 0-8, or 1,5,9."
            )
            parts["resolution"] = gr.Textbox(
                value="",
                label="Resolution (pixels)",
                max_lines=1,
                info="Such as 1024x1024. Empty: the model's own.",
            )
        with gr.Row():
            parts["teacher_steps"] = gr.Textbox(
                value="", label="Steps of the checkpoint", max_lines=1, info="Empty: as trained."
            )
            parts["guidance_scale"] = gr.Textbox(
                value="", label="Guidance of the checkpoint", max_lines=1, info="Empty: as trained."
            )
        parts["settings_note"] = note()


def _start(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-card"]):
        markup(heading("Compare", "Diversity, distance from the checkpoint, speed, seed grids."))
        parts["title"] = gr.Textbox(value="", label="Title", max_lines=1, placeholder="Comparison")
        parts["baseline"] = gr.Checkbox(
            value=True,
            label="Also without the LoRA at step 1",
            info="A training-free baseline: the LoRA is off for the first step.",
        )
        parts["start"] = gr.Button("Compare", variant="primary", elem_id="dpdmd-compare")
        parts["start_note"] = note()
