"""The Runs page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..forms.changes import Change, Values
from ..widgets import runs_view as view
from ..widgets.run_pieces import Address
from ..widgets.wiring import Builder, Components, on, title, with_button

REFRESH = "dpdmd-refresh"
SELECTED = "dpdmd-selected"
LABELS = {
    "start": "Start",
    "stop": "Stop and keep",
    "up": "Earlier",
    "down": "Later",
    "duplicate": "Duplicate",
    view.SHARE: "Share",
    "delete": "Delete",
}
BOXES = tuple(f"{name}_box" for name in view.FOLDED)
OUTPUTS = (
    *view.PIECES,
    *BOXES,
    *view.BUTTONS,
    view.SHARE,
    "rename_box",
    "new_title",
    "message",
    "selected",
    "seen",
)


def build(selected: Any, address: Address | None) -> Components:
    """The page inside the caller's Blocks; its components by name.

    A script clicks the hidden button `dpdmd-refresh` while something goes on, and puts the id of a
    job that is clicked into the text field `dpdmd-selected`.

    Args:
        selected: that text field.
        address: where a browser finds a job's report; without it the report goes into the page.
    """
    made = Builder({}, selected=selected, seen=gr.State({}))
    with gr.Row(elem_classes=["dp-columns"], elem_id="dpdmd-runs"):
        with gr.Column(scale=3, min_width=250, elem_classes=["dp-list"]):
            title("Runs and queue", "One at a time. Closing this page stops nothing.")
            made.markup("list")
            _trash(made)
        with gr.Column(scale=8, min_width=420, elem_classes=["dp-view"]):
            made.markup("status", "dp-status")
            with gr.Row(elem_classes=["dp-buttons"]):
                for name, label in LABELS.items():
                    made.button(
                        name,
                        label,
                        variant="primary" if name == "start" else "secondary",
                        size="sm",
                        min_width=90,
                        visible=False,
                        elem_id=f"dpdmd-run-{name}",
                    )
            made.note("message")
            made.markup("findings")
            made.markup("check")
            made.markup("images")
            made.markup("curves")
            _folded(made, "more", "More curves")
            made.markup("files", "dp-files")
            _folded(made, "report", "Report")
            _folded(made, "log", "Log")
            made.parts["rename_box"] = gr.Accordion("Rename", open=False, visible=False)
            with made.parts["rename_box"], with_button():
                info = "For your eyes; files keep their names."
                made.text("new_title", "Title", info, scale=5)
                made.button_beside("rename", "Rename")
    # for the script: in the page, but neither seen nor reached by keyboard
    made.button("refresh", "", elem_id=REFRESH, elem_classes=["dp-hidden"])
    _wire(made.parts, address)
    return made.parts


def _trash(made: Builder) -> None:
    with gr.Accordion("Trash", open=False):
        made.dropdown("trash", "Deleted runs", choices=[], value=None)
        with gr.Row():
            made.button("look", "Look again", size="sm", min_width=90)
            made.button("restore", "Take back", size="sm", min_width=90)


def _folded(made: Builder, name: str, text: str) -> None:
    with gr.Accordion(text, open=False, visible=False) as made.parts[f"{name}_box"]:
        made.markup(name)


def refresh_event(
    event: Any, parts: Components, address: Address | None, *, keep_message: bool = False
) -> Any:
    """Have `event` bring the page up to date."""

    def handler(values: Values) -> Values:
        selected, seen = values.get("selected"), values.get("seen")
        return view.refresh(selected, seen, address, keep_message=keep_message)

    return on(event, handler, parts, ("selected", "seen"), OUTPUTS)


def _wire(parts: Components, address: Address | None) -> None:
    refresh_event(parts["refresh"].click, parts, address)
    acted = ("message", "selected")
    given = {"rename": ("selected", "new_title"), "restore": ("trash",)}
    for name in (*view.BUTTONS, *given):
        inputs = given.get(name, ("selected",))
        event = on(parts[name].click, _action(name), parts, inputs, acted)
        event = refresh_event(event.then, parts, address, keep_message=True)
        if name in ("delete", "restore"):
            on(event.then, _trashed, parts, (), ("trash",))
    on(parts["look"].click, _trashed, parts, (), ("trash",))


def _action(name: str) -> Any:
    def handler(values: Values) -> Values:
        text = values.get("new_title") or values.get("trash")
        return view.act(name, values.get("selected"), text)

    return handler


def _trashed(values: Values) -> Values:
    names = view.trash()
    return {"trash": Change(choices=names, value=names[0] if names else None)}
