"""The Distill page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...config.presets import DEMO
from ...config.request import OTHER_FILES
from ..forms import distill as form
from ..forms import distill_hints as hints
from ..forms import trainer as trainer_form
from ..forms.changes import Values
from ..forms.controls import PLAIN, Control, advanced, controls
from ..widgets.html import piece
from ..widgets.wiring import (
    Builder,
    Components,
    Handler,
    Page,
    form_and_start,
    on,
    section,
    with_button,
)

CHECK = (
    "Before a first run: a check tells in about fifteen minutes on a card whether this checkpoint "
    "can be distilled here with these settings, how much memory that really takes and how long."
)
COST = ("checkpoint", "memory", *OTHER_FILES, *controls())
FOLDERS = ("checkpoint", "teacher_loras", "settings_lora", "folder", "new_folder", "folder_note")
LISTS = (*FOLDERS, "trainer_box", "trainer")
FOLLOW, TAKE = "dpdmd-follow", "dpdmd-take"
"""Hidden buttons that a host's script clicks: the form is seen again, its checkpoint is wanted."""
FITTED = ("checkpoint", "prompts", "name", "output_folder", "memory", "evaluation_prompts", *DEMO)
FITTING = (
    "prompts",
    "name",
    "memory",
    "starter",
    *DEMO,
    "prompts_count",
    "examples",
    "prompts_note",
)
"""What the choice of a checkpoint asks of the form, and may change beside it."""
FOLLOWING = ("checkpoint", "clip_skip", "hosts")
AFTER_START = (*(f"{name}_note" for name in form.NOTES), "selected", "name", "tabs")


def build(selected: Any, tabs: Any) -> Page:
    """The page inside the caller's Blocks.

    Args:
        selected: the text field that holds the id of the job in view on the Runs page.
        tabs: the pages' tabs; a start shows the Runs page.
    """
    first = opening()
    made = Builder(first, selected=selected, tabs=tabs, hosts=gr.State(form.hosts()))
    form_and_start(made, (_checkpoint, _prompts, _settings, _loras, _output), _start)
    made.button("follow", "", elem_id=FOLLOW, elem_classes=["dp-hidden"])
    made.button("take", "", elem_id=TAKE, elem_classes=["dp-hidden"])
    return Page(made.parts, lambda values: opening(), tuple(first), _wire(made.parts))


def opening() -> Values:
    """Everything that the page shows when it is opened."""
    return hints.opening() | trainer_form.look()


def relist(event: Any, page: Page) -> Any:
    """Have `event` take new files into the lists; nothing that was chosen or typed changes."""
    return on(event, lambda values: hints.lists() | trainer_form.look(), page.parts, (), LISTS)


def _checkpoint(made: Builder) -> None:
    with section("Checkpoint", "The model that is distilled. It is only read."):
        info = "From your folders. To try it out in minutes, take a demo at the end of the list."
        made.dropdown("checkpoint", "Checkpoint file", info, elem_id="dpdmd-checkpoint")
        made.markup("detected")
        made.note("checkpoint_note")
        with gr.Accordion("Folders and other model files", open=False):
            _folders(made)


def _folders(made: Builder) -> None:
    with with_button():
        example = "/home/me/ComfyUI/models/checkpoints"
        made.text("new_folder", "Add a folder with models", scale=5, placeholder=example)
        made.button_beside("add_folder", "Add folder")
    made.note("folder_note")
    with with_button():
        made.dropdown("folder", "Folders you named", scale=5, allow_custom_value=False)
        made.button_beside("forget", "Forget it")
    for name, label in OTHER_FILES.items():
        info = "Path inside one of the folders. Empty: what the checkpoint holds."
        made.text(name, label, info)
    made.button("rescan", "Look for new files", min_width=120)


def _prompts(made: Builder) -> None:
    with section("Prompts", "What you will generate with it. A few hundred are a good start."):
        with with_button():
            made.dropdown("starter", "Starter prompts", scale=5, allow_custom_value=False)
            made.button_beside("use_starter", "Use these")
        made.text(
            "prompts",
            "Your prompts",
            "One a line. {red|blue} picks one of them, (word:1.2) sets a weight, # comments.",
            lines=8,
            max_lines=14,
            placeholder="portrait photo of {a woman|a man} by a window, soft light",
            elem_id="dpdmd-prompts",
        )
        made.markup("prompts_count", "dp-count")
        made.note("prompts_note")
        made.markup("examples")
        with gr.Accordion("From a file, or from images you made", open=False):
            made.parts["prompts_upload"] = gr.File(label="A text file with prompts")
            with with_button():
                label = "A text file, or a folder of images made in A1111 or ComfyUI"
                info = "In one of the folders above. Only the images' prompts are read."
                made.text("prompts_path", label, info, scale=5)
                made.button_beside("read_path", "Read")


def _settings(made: Builder) -> None:
    known = controls()
    with section("Settings", "The defaults are a good start."):
        info = "Fills in what fits. Chosen by arithmetic, not measured on every card."
        made.dropdown("memory", "Memory of your graphics card", info)
        _in_rows(made, [known[name] for name in PLAIN], 2)
        made.note("settings_note")
        # A group at a time fits a screen.
        with gr.Accordion("Advanced", open=False, elem_classes=["dp-advanced"]), gr.Tabs():
            for text, items in advanced().items():
                with gr.Tab(text):
                    _in_rows(made, items, 3)
        with gr.Accordion("Settings files, and distil again like this", open=False):
            _settings_files(made)


def _in_rows(made: Builder, items: list[Control], size: int) -> None:
    for start in range(0, len(items), size):
        with gr.Row():
            for item in items[start : start + size]:
                made.setting(item)


def _settings_files(made: Builder) -> None:
    info = "Takes the settings that a LoRA carries, if DP-DMD Studio made it."
    made.dropdown("settings_lora", "Distil again like this LoRA", info)
    made.parts["settings_upload"] = gr.File(label="Or a settings file (.json)")
    made.note("import_note")
    with gr.Row():
        made.button("use_settings", "Take these settings", min_width=150)
        made.button("export", "Save the form's settings as a file", min_width=150)
    made.parts["settings_download"] = gr.File(
        label="Settings file, without paths and prompts", visible=False, interactive=False
    )


def _loras(made: Builder) -> None:
    with section("LoRAs in the teacher", "Optional: styles that the student should learn."):
        made.several("teacher_loras", "LoRAs merged into the checkpoint")
        with gr.Row():
            made.text("strengths", "Their strengths", "Such as 0.8, 1. Empty: 1 each.")
            info = "Otherwise load them beside it when you generate."
            made.checkbox("include_teacher_loras", "The new LoRA holds them, too", info)
        made.note("loras_note")


def _output(made: Builder) -> None:
    with section("Where it goes"):
        with gr.Row():
            made.text("name", "Name of the LoRA", elem_id="dpdmd-name")
            formats = [("ComfyUI, A1111, Forge", "kohya"), ("diffusers (PEFT)", "peft")]
            made.dropdown(
                "file_format", "File format for", choices=formats, allow_custom_value=False
            )
        info = "Name your host's folder for LoRAs, and it is there at once."
        made.text("output_folder", "Folder", info)
        made.note("output_note")


def _start(made: Builder) -> None:
    box = made.first["trainer_box"]
    with gr.Column(elem_classes=["dp-card"], **box) as made.parts["trainer_box"]:
        made.markup("trainer")
        made.button("set_up", "Set up the trainer", variant="primary", elem_id="dpdmd-set-up")
        made.note("trainer_note")
    with section("Before you start", kind="dp-card"):
        made.markup("estimate")
        gr.HTML(value=piece("paragraph", CHECK, "dp-soft"), elem_classes=["dp"])
        made.button("check", "Check this checkpoint", elem_id="dpdmd-check")
        made.start("Start distilling", elem_id="dpdmd-start")


def _after_a_change(handler: Handler) -> Handler:
    """The same, which takes back what was said of a start before the change."""

    def changed(values: Values) -> Values:
        return {"start_note": "", **handler(values)}

    return changed


def _wire(parts: Components) -> Any:
    """Connect everything; the event of a start."""
    described = ("detected", "memory", "checkpoint_note")
    model, knobs = ("checkpoint", "memory", *OTHER_FILES), tuple(controls())
    taken = (*knobs, "memory", "import_note", "settings_note")
    offered = ("settings_lora", "settings_upload")
    describe_cost = _after_a_change(hints.describe_cost)
    cost: dict[str, Any] = {"inputs": COST, "outputs": ("estimate", "settings_note", "start_note")}
    counted: dict[str, Any] = {
        "inputs": ("prompts", "evaluation_prompts"),
        "outputs": ("prompts_count", "examples", "prompts_note", "start_note"),
    }
    preset = (*knobs, "settings_note")

    event = on(parts["checkpoint"].input, hints.fit_checkpoint, parts, FITTED, FITTING)
    event = on(event.then, hints.describe_checkpoint, parts, model, described)
    event = on(event.then, form.apply_preset, parts, model, preset)
    on(event.then, describe_cost, parts, **cost)
    for button, follow in (("follow", form.follow), ("take", form.take)):
        event = on(parts[button].click, follow, parts, ("hosts",), FOLLOWING)
        event = on(event.then, hints.fit_checkpoint, parts, FITTED, FITTING)
        event = on(event.then, hints.describe_checkpoint, parts, model, described)
        on(event.then, describe_cost, parts, **cost)
    for name in OTHER_FILES:
        event = on(parts[name].blur, hints.describe_checkpoint, parts, model, described)
        on(event.then, hints.describe_cost, parts, **cost)  # a press of Start blurs, too
    event = on(parts["memory"].input, form.apply_preset, parts, model, preset)
    on(event.then, describe_cost, parts, **cost)
    for name in knobs:
        on(parts[name].input, describe_cost, parts, **cost)
    event = on(parts["use_settings"].click, form.apply_settings, parts, offered, taken)
    on(event.then, describe_cost, parts, **cost)
    saved = ("settings_download", "import_note")
    on(parts["export"].click, form.export, parts, knobs, saved)

    on(parts["prompts"].input, _after_a_change(hints.describe_prompts), parts, **counted)
    for trigger, handler, name in (
        (parts["use_starter"].click, hints.apply_starter, "starter"),
        (parts["read_path"].click, hints.read_prompt_source, "prompts_path"),
        (parts["prompts_upload"].upload, hints.read_prompt_source, "prompts_upload"),
    ):
        read = ("prompts", *counted["outputs"])
        on(trigger, _after_a_change(handler), parts, (name, "evaluation_prompts"), read)

    on(parts["add_folder"].click, hints.add_folder, parts, ("new_folder",), FOLDERS)
    on(parts["forget"].click, hints.forget_folder, parts, ("folder",), FOLDERS)
    on(parts["rescan"].click, lambda values: hints.lists(), parts, (), FOLDERS)
    shown = ("trainer_note", "selected", "tabs")
    set_up = on(parts["set_up"].click, trainer_form.set_up, parts, (), shown)
    started = on(parts["start"].click, form.submit, parts, form.names(), AFTER_START)
    checked = on(parts["check"].click, form.check, parts, form.names(), AFTER_START)
    return started, checked, set_up
