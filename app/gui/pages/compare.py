"""The Compare page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...jobs import made_loras
from ...library import choices as sources
from ..forms import compare as form
from ..forms.changes import Change, Values
from ..widgets.run_pieces import Address
from ..widgets.wiring import Builder, Page, form_and_start, on, section, title

AFTER_START = (*(f"{name}_note" for name in form.NOTES), "selected", "tabs")
OPENED = ("checkpoint", "loras", "styles", "chosen", "report")


def build(selected: Any, tabs: Any, address: Address | None) -> Page:
    """The page inside the caller's Blocks; arguments as the other pages'."""
    first = form.initial() | opening({}, address)
    first["styles"]["value"] = []
    made = Builder(first, selected=selected, tabs=tabs)
    form_and_start(made, (_models, _prompts), _start)
    with gr.Column(elem_classes=["dp-section", "dp-wide"]):
        title("Finished comparisons")
        made.dropdown("chosen", "Comparison")
        made.markup("report")
    parts = made.parts
    on(
        parts["chosen"].input,
        lambda values: form.show(values["chosen"], address),
        parts,
        ("chosen",),
        ("report",),
    )
    models = ("checkpoint", "loras", "strengths", "styles", "style_strengths")
    for name in ("checkpoint", "loras"):
        on(parts[name].input, form.look_at_pair, parts, models, ("models_note",))
    done = on(parts["start"].click, form.submit, parts, form.FORM, AFTER_START)
    return Page(parts, lambda values: opening(values, address), OPENED, (done,))


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
    if not values.get("loras"):
        pair = form.first_pair(loras)
        if not values.get("checkpoint") or pair["loras"]:
            found["checkpoint"]["value"] = pair["checkpoint"]
        found["loras"]["value"] = pair["loras"]
    return found


def _models(made: Builder) -> None:
    strengths = ("Their strengths", "Such as 0.8, 1. Empty: 1 each.")
    text = "Each LoRA is compared with the checkpoint at its full number of steps."
    with section("Models", text):
        made.dropdown("checkpoint", "Checkpoint file")
        info = "Any kind: yours, plain DMD, or by other makers."
        made.several("loras", "Few-step LoRAs to compare", info)
        made.text("strengths", *strengths)
        with gr.Accordion("Style LoRAs for every image", open=False):
            made.several("styles", "Styles")
            made.text("style_strengths", *strengths)
        made.note("models_note")


def _prompts(made: Builder) -> None:
    with section("Prompts", "Best held out: prompts that were not trained on."):
        info = "One a line. The demo checkpoints need none: they bring their own."
        made.text("prompts", "Evaluation prompts", info, lines=5, max_lines=12)
        made.note("prompts_note")
        with gr.Row():
            made.text("seeds", "Seeds", "Such as 0-8, or 1,5,9.")
            info = "Such as 1024x1024. Empty: the model's own."
            made.text("resolution", "Resolution (pixels)", info)
        with gr.Row():
            made.text("teacher_steps", "Steps of the checkpoint", "Empty: 28, or as trained.")
            made.text("guidance_scale", "Guidance of the checkpoint", "Empty: as trained.")
        made.note("settings_note")


def _start(made: Builder) -> None:
    text = "Diversity, distance from the checkpoint, speed, seed grids."
    with section("Compare", text, "dp-card"):
        made.text("title", "Title", placeholder="Comparison")
        info = "A training-free baseline: the LoRA is off for the first step."
        made.checkbox("baseline", "Also without the LoRA at step 1", info)
        made.start("Compare", elem_id="dpdmd-compare")
