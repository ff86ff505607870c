"""The Share page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...library import choices as sources
from ..forms import share as form
from ..forms.changes import Change, Values
from ..widgets.dropdown import dropdown
from ..widgets.html import heading
from ..widgets.wiring import Components, Page, markup, note, on

AFTER_START = (*(f"{name}_note" for name in form.NOTES), "selected", "tabs")
OPENED = (
    "source",
    "checkpoint",
    "name",
    "base_model",
    "label_note",
    "source_note",
    "chosen",
    "package",
    "zip",
    "description",
)
SHOWN = ("package", "zip", "description")


def build(selected: Any, tabs: Any) -> Page:
    """The page inside the caller's Blocks; arguments as the other pages'."""
    parts: Components = {"selected": selected, "tabs": tabs}
    first = _first()
    with gr.Row(elem_classes=["dp-columns"]):
        with gr.Column(scale=7, min_width=320, elem_classes=["dp-form"]):
            _source(parts, first)
            _words(parts, first)
            _previews(parts)
        with gr.Column(scale=4, min_width=280, elem_classes=["dp-aside"]):
            _start(parts)
    with gr.Column(elem_classes=["dp-section", "dp-wide"]):
        _packages(parts, first)
    described = ("checkpoint", "name", "base_model", "label_note", "source_note")
    on(parts["source"].input, form.describe, parts, ("source", "checkpoint"), described)
    labelled = ("base_model", "label_note", "source_note")
    on(parts["checkpoint"].input, form.labels, parts, ("checkpoint",), labelled)
    on(parts["chosen"].input, lambda values: form.show(values["chosen"]), parts, ("chosen",), SHOWN)
    done = on(parts["start"].click, form.submit, parts, form.FORM, AFTER_START)
    return Page(parts, opening, OPENED, (done,))


def opening(values: Values) -> Values:
    """What the page shows when it is opened: new files in the lists; what was chosen stays."""
    found = form.choices(values)
    source = found["source"]["value"]
    if source and source != values.get("source"):
        found |= form.describe({"source": source})
    chosen = found.get("checkpoint", values.get("checkpoint")) or None
    choices = sources.checkpoints()
    if chosen and chosen not in {value for _, value in choices}:
        choices = [(str(chosen), str(chosen)), *choices]
    found["checkpoint"] = Change(choices=choices, value=chosen)
    return found | form.show(found["chosen"]["value"])


def _first() -> Values:
    blank: Values = {"label_note": "", "base_model": Change(choices=[], value=None)}
    return form.initial() | blank | opening({})


def _source(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("What to share", "A run, or a LoRA that was made here."))
        parts["source"] = dropdown(**first["source"], label="Run or LoRA", allow_custom_value=True)
        parts["checkpoint"] = dropdown(
            **first["checkpoint"],
            label="Its checkpoint",
            info="Generates the previews. A run knows its own.",
            allow_custom_value=True,
        )
        parts["source_note"] = note()


def _words(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("What it is called", "Written into the file and into its descriptions."))
        with gr.Row():
            parts["name"] = gr.Textbox(value=first["name"], label="Name", max_lines=1)
            parts["author"] = gr.Textbox(value="", label="Author", max_lines=1)
        with gr.Row():
            parts["license"] = gr.Textbox(
                value="",
                label="Licence",
                max_lines=1,
                info="Empty: that of the base model, with a note.",
            )
            parts["trigger_words"] = gr.Textbox(
                value="", label="Trigger words", max_lines=1, info="A few-step LoRA needs none."
            )
        parts["base_model"] = dropdown(
            **first["base_model"], label="Base model on Civitai", allow_custom_value=True
        )
        parts["label_note"] = gr.HTML(
            value=first["label_note"],
            visible=bool(first["label_note"]),
            elem_classes=["dp", "dp-note"],
        )
        parts["words_note"] = note()


def _previews(parts: Components) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("Preview images"))
        parts["prompts"] = gr.Textbox(
            value="",
            label="Prompts for the previews",
            lines=3,
            max_lines=10,
            info="One a line. Empty: the prompts that the run held out.",
        )
        parts["count"] = gr.Slider(
            form.FEWEST, form.MOST, value=form.USUAL, step=1, label="Number of images"
        )
        parts["prompts_note"] = note()


def _start(parts: Components) -> None:
    with gr.Column(elem_classes=["dp-card"]):
        text = "A folder and a zip for Civitai, Hugging Face, A1111 and ComfyUI."
        markup(heading("Make the package", text))
        parts["start"] = gr.Button("Make the package", variant="primary", elem_id="dpdmd-package")
        parts["start_note"] = note()


def _packages(parts: Components, first: Values) -> None:
    markup(heading("Finished packages"))
    parts["chosen"] = dropdown(**first["chosen"], label="Package", allow_custom_value=True)
    parts["package"] = markup(first["package"])
    parts["zip"] = gr.File(**first["zip"], label="The whole package", interactive=False)
    parts["description"] = gr.HTML(**first["description"], elem_classes=["dp"])
