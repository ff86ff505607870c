"""The Distill page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..forms import distill as form
from ..forms import distill_hints as hints
from ..forms import trainer as trainer_form
from ..forms.changes import Values
from ..forms.controls import PLAIN, advanced, controls
from ..widgets.dropdown import dropdown
from ..widgets.html import heading
from ..widgets.wiring import Components, Page, component, markup, note, on, several

OTHER_FILES = {
    "clip_l": "CLIP-L text encoder",
    "clip_g": "CLIP-G text encoder",
    "t5": "T5-XXL text encoder",
    "vae": "VAE (for previews)",
}

COST = ("checkpoint", "memory", *controls())
FOLDERS = ("checkpoint", "teacher_loras", "settings_lora", "folder", "new_folder", "folder_note")
LISTS = (*FOLDERS, "trainer_box", "trainer")
AFTER_START = (*(f"{name}_note" for name in form.NOTES), "selected", "name", "tabs")


def build(selected: Any, tabs: Any) -> Page:
    """The page inside the caller's Blocks.

    Args:
        selected: the text field that holds the id of the job in view on the Runs page.
        tabs: the pages' tabs; a start shows the Runs page.
    """
    first = opening()
    parts: Components = {"selected": selected, "tabs": tabs}
    with gr.Row(elem_classes=["dp-columns"]):
        with gr.Column(scale=7, min_width=320, elem_classes=["dp-form"]):
            _checkpoint(parts, first)
            _prompts(parts, first)
            _settings(parts, first)
            _loras(parts, first)
            _output(parts, first)
        with gr.Column(scale=4, min_width=280, elem_classes=["dp-aside"]):
            _start(parts, first)
    return Page(parts, lambda values: opening(), tuple(first), _wire(parts))


def opening() -> Values:
    """Everything that the page shows when it is opened."""
    return hints.opening() | trainer_form.look()


def relist(event: Any, page: Page) -> Any:
    """Have `event` take new files into the lists; nothing that was chosen or typed changes."""
    return on(event, lambda values: hints.lists() | trainer_form.look(), page.parts, (), LISTS)


def _checkpoint(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("Checkpoint", "The model that is distilled. It is only read."))
        parts["checkpoint"] = dropdown(
            **first["checkpoint"],
            label="Checkpoint file",
            info="From your folders and those of a ComfyUI or WebUI beside this program.",
            allow_custom_value=True,
            elem_id="dpdmd-checkpoint",
        )
        parts["detected"] = markup(first["detected"])
        parts["checkpoint_note"] = note()
        with gr.Accordion("Folders and other model files", open=False):
            _folders(parts, first)


def _folders(parts: Components, first: Values) -> None:
    with gr.Row(elem_classes=["dp-with-button"]):
        parts["new_folder"] = gr.Textbox(
            label="Add a folder with models",
            max_lines=1,
            scale=5,
            placeholder="/home/me/ComfyUI/models/checkpoints",
        )
        parts["add_folder"] = gr.Button("Add folder", scale=1, min_width=110)
    parts["folder_note"] = note()
    with gr.Row(elem_classes=["dp-with-button"]):
        parts["folder"] = dropdown(**first["folder"], label="Folders you named", scale=5)
        parts["forget"] = gr.Button("Forget it", scale=1, min_width=110)
    for name, label in OTHER_FILES.items():
        parts[name] = gr.Textbox(
            label=label,
            value=first[name],
            max_lines=1,
            info="Path inside one of the folders. Empty: what the checkpoint holds.",
        )
    parts["rescan"] = gr.Button("Look for new files", min_width=120)


def _prompts(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(
            heading("Prompts", "What you will generate with it. A few hundred are a good start.")
        )
        with gr.Row(elem_classes=["dp-with-button"]):
            parts["starter"] = dropdown(**first["starter"], label="Starter prompts", scale=5)
            parts["use_starter"] = gr.Button("Use these", scale=1, min_width=110)
        parts["prompts"] = gr.Textbox(
            value=first["prompts"],
            label="Your prompts",
            info="One a line. {red|blue} picks one of them, (word:1.2) sets a weight, # comments.",
            lines=8,
            max_lines=14,
            placeholder="portrait photo of {a woman|a man} by a window, soft light",
            elem_id="dpdmd-prompts",
        )
        parts["prompts_count"] = markup(first["prompts_count"], classes=["dp-count"])
        parts["prompts_note"] = note()
        parts["examples"] = markup(first["examples"])
        with gr.Accordion("From a file, or from images you made", open=False):
            parts["prompts_upload"] = gr.File(label="A text file with prompts")
            with gr.Row(elem_classes=["dp-with-button"]):
                parts["prompts_path"] = gr.Textbox(
                    label="A text file, or a folder of PNGs made in A1111 or ComfyUI",
                    info="In one of the folders above. Only the images' prompts are read.",
                    max_lines=1,
                    scale=5,
                )
                parts["read_path"] = gr.Button("Read", scale=1, min_width=110)


def _settings(parts: Components, first: Values) -> None:
    known = controls()
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("Settings", "The defaults are a good start."))
        parts["memory"] = dropdown(
            **first["memory"],
            label="Memory of your graphics card",
            info="Fills in what fits. Chosen by arithmetic, not measured on every card.",
            allow_custom_value=True,
        )
        for names in zip(PLAIN[::2], PLAIN[1::2], strict=True):
            with gr.Row():
                for name in names:
                    parts[name] = component(known[name], first[name])
        parts["settings_note"] = note()
        with gr.Accordion("Advanced", open=False, elem_classes=["dp-advanced"]):
            for title, items in advanced().items():
                markup(heading(title, level=3))
                for start in range(0, len(items), 2):
                    with gr.Row():
                        for item in items[start : start + 2]:
                            parts[item.name] = component(item, first[item.name])
        with gr.Accordion("Settings files, and distil again like this", open=False):
            _settings_files(parts, first)


def _settings_files(parts: Components, first: Values) -> None:
    parts["settings_lora"] = dropdown(
        **first["settings_lora"],
        label="Distil again like this LoRA",
        info="Takes the settings that a LoRA carries, if DP-DMD Studio made it.",
        allow_custom_value=True,
    )
    parts["settings_upload"] = gr.File(label="Or a settings file (.json)")
    parts["import_note"] = note()
    with gr.Row():
        parts["use_settings"] = gr.Button("Take these settings", min_width=150)
        parts["export"] = gr.Button("Save the form's settings as a file", min_width=150)
    parts["settings_download"] = gr.File(
        label="Settings file, without paths and prompts", visible=False, interactive=False
    )


def _loras(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("LoRAs in the teacher", "Optional: styles that the student should learn."))
        parts["teacher_loras"] = several(first["teacher_loras"], "LoRAs merged into the checkpoint")
        with gr.Row():
            parts["strengths"] = gr.Textbox(
                value=first["strengths"],
                label="Their strengths",
                max_lines=1,
                info="Such as 0.8, 1. Empty: 1 each.",
            )
            parts["include_teacher_loras"] = gr.Checkbox(
                value=bool(first["include_teacher_loras"]),
                label="The new LoRA holds them, too",
                info="Otherwise load them beside it when you generate.",
            )
        parts["loras_note"] = note()


def _output(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-section"]):
        markup(heading("Where it goes"))
        with gr.Row():
            parts["name"] = gr.Textbox(
                value=first["name"], label="Name of the LoRA", max_lines=1, elem_id="dpdmd-name"
            )
            parts["file_format"] = dropdown(
                choices=[("ComfyUI, A1111, Forge", "kohya"), ("diffusers (PEFT)", "peft")],
                value=first["file_format"],
                label="File format for",
            )
        parts["output_folder"] = gr.Textbox(
            value=first["output_folder"],
            label="Folder",
            info="Name your host's folder for LoRAs, and it is there at once.",
            max_lines=1,
        )
        parts["output_note"] = note()


def _start(parts: Components, first: Values) -> None:
    with gr.Column(elem_classes=["dp-card"], **first["trainer_box"]) as parts["trainer_box"]:
        parts["trainer"] = markup(first["trainer"])
        parts["set_up"] = gr.Button("Set up the trainer", variant="primary", elem_id="dpdmd-set-up")
        parts["trainer_note"] = note()
    with gr.Column(elem_classes=["dp-card"]):
        markup(heading("Before you start"))
        parts["estimate"] = markup(first["estimate"])
        parts["start"] = gr.Button("Start distilling", variant="primary", elem_id="dpdmd-start")
        parts["start_note"] = note()


def _wire(parts: Components) -> Any:
    """Connect everything; the event of a start."""
    described = ("detected", "memory", "checkpoint_note")
    model, knobs = ("checkpoint", "memory"), tuple(controls())
    taken = (*knobs, "memory", "import_note", "settings_note")
    offered = ("settings_lora", "settings_upload")
    cost: dict[str, Any] = {"inputs": COST, "outputs": ("estimate", "settings_note")}
    counted: dict[str, Any] = {
        "inputs": ("prompts", "evaluation_prompts"),
        "outputs": ("prompts_count", "examples", "prompts_note"),
    }
    preset = (*knobs, "settings_note")

    event = on(parts["checkpoint"].input, hints.describe_checkpoint, parts, model, described)
    event = on(event.then, form.apply_preset, parts, model, preset)
    on(event.then, hints.describe_cost, parts, **cost)
    event = on(parts["memory"].input, form.apply_preset, parts, model, preset)
    on(event.then, hints.describe_cost, parts, **cost)
    for name in knobs:
        on(parts[name].input, hints.describe_cost, parts, **cost)
    event = on(parts["use_settings"].click, form.apply_settings, parts, offered, taken)
    on(event.then, hints.describe_cost, parts, **cost)
    saved = ("settings_download", "import_note")
    on(parts["export"].click, form.export, parts, knobs, saved)

    on(parts["prompts"].input, hints.describe_prompts, parts, **counted)
    for trigger, handler, name in (
        (parts["use_starter"].click, hints.apply_starter, "starter"),
        (parts["read_path"].click, hints.read_prompt_source, "prompts_path"),
        (parts["prompts_upload"].upload, hints.read_prompt_source, "prompts_upload"),
    ):
        on(trigger, handler, parts, (name, "evaluation_prompts"), ("prompts", *counted["outputs"]))

    on(parts["add_folder"].click, hints.add_folder, parts, ("new_folder",), FOLDERS)
    on(parts["forget"].click, hints.forget_folder, parts, ("folder",), FOLDERS)
    on(parts["rescan"].click, lambda values: hints.lists(), parts, (), FOLDERS)
    shown = ("trainer_note", "selected", "tabs")
    set_up = on(parts["set_up"].click, trainer_form.set_up, parts, (), shown)
    started = on(parts["start"].click, form.submit, parts, form.names(), AFTER_START)
    return started, set_up
