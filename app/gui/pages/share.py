"""The Share page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...library import choices as sources
from ..forms import share as form
from ..forms.changes import Change, Values
from ..widgets.wiring import Builder, Page, form_and_start, on, section, title

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
    blank: Values = {"label_note": "", "base_model": Change(choices=[], value=None)}
    first = form.FORM | blank | opening({})
    made = Builder(first, selected=selected, tabs=tabs)
    form_and_start(made, (_source, _words, _previews), _start)
    with gr.Column(elem_classes=["dp-section", "dp-wide"]):
        _packages(made)
    parts = made.parts
    described = ("checkpoint", "name", "base_model", "label_note", "source_note")
    on(parts["source"].input, form.describe, parts, ("source", "checkpoint"), described)
    labelled = ("base_model", "label_note", "source_note")
    on(parts["checkpoint"].input, form.labels, parts, ("checkpoint",), labelled)
    on(parts["chosen"].input, lambda values: form.show(values["chosen"]), parts, ("chosen",), SHOWN)
    done = on(parts["start"].click, form.submit, parts, form.FORM, AFTER_START)
    return Page(parts, opening, OPENED, (done,))


def of_run(values: Values) -> Values:
    """The page with the run in view (its id is `selected`) as what to share."""
    source = form.RUN + str(values.get("selected"))
    return opening({**values, "source": None}, source) | {"tabs": Change(selected="share")}


def opening(values: Values, source: str = "") -> Values:
    """What the page shows when it is opened: new files in the lists; what was chosen stays.

    Args:
        source: what to share in place of that.
    """
    found = form.choices({**values, "source": source} if source else values)
    source = found["source"]["value"]
    if source and source != values.get("source"):
        found |= form.describe({"source": source})
    chosen = found.get("checkpoint", values.get("checkpoint")) or None
    choices = sources.checkpoints()
    if chosen and chosen not in {value for _, value in choices}:
        choices = [(str(chosen), str(chosen)), *choices]
    found["checkpoint"] = Change(choices=choices, value=chosen)
    return found | form.show(found["chosen"]["value"])


def _source(made: Builder) -> None:
    with section("What to share", "A run, or a LoRA that was made here."):
        made.dropdown("source", "Run or LoRA")
        info = "Generates the previews. A run knows its own."
        made.dropdown("checkpoint", "Its checkpoint", info)
        made.note("source_note")


def _words(made: Builder) -> None:
    with section("What it is called", "Written into the file and into its descriptions."):
        with gr.Row():
            made.text("name", "Name")
            made.text("author", "Author")
        with gr.Row():
            made.text("license", "Licence", "Empty: that of the base model, with a note.")
            made.text("trigger_words", "Trigger words", "A few-step LoRA needs none.")
        made.dropdown("base_model", "Base model on Civitai")
        made.note("label_note")
        made.note("words_note")


def _previews(made: Builder) -> None:
    with section("Preview images"):
        info = "One a line. Empty: the prompts that the run held out."
        made.text("prompts", "Prompts for the previews", info, lines=3, max_lines=10)
        made.parts["count"] = gr.Slider(
            form.FEWEST, form.MOST, value=form.USUAL, step=1, label="Number of images"
        )
        made.note("prompts_note")


def _start(made: Builder) -> None:
    text = "A folder and a zip for Civitai, Hugging Face, A1111 and ComfyUI."
    with section("Make the package", text, "dp-card"):
        made.start("Make the package", elem_id="dpdmd-package")


def _packages(made: Builder) -> None:
    title("Finished packages")
    made.dropdown("chosen", "Package")
    made.markup("package")
    made.parts["zip"] = gr.File(**made.first["zip"], label="The whole package", interactive=False)
    made.markup("description")
