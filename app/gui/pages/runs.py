"""The Runs page's widgets."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..forms.changes import Change, Values
from ..widgets import runs_view as view
from ..widgets.dropdown import dropdown
from ..widgets.html import heading
from ..widgets.wiring import Components, hidden_button, markup, note, on

REFRESH = "dpdmd-refresh"
SELECTED = "dpdmd-selected"
LABELS = {
    "start": "Start",
    "stop": "Stop and keep",
    "up": "Earlier",
    "down": "Later",
    "duplicate": "Duplicate",
    "delete": "Delete",
}
BOXES = tuple(f"{name}_box" for name in view.FOLDED)
OUTPUTS = (*view.PIECES, *BOXES, *view.BUTTONS, "new_title", "message", "selected", "seen")


def build(selected: Any, address: view.Address | None) -> Components:
    """The page inside the caller's Blocks; its components by name.

    A script clicks the hidden button `dpdmd-refresh` while something goes on, and puts the id of a
    job that is clicked into the text field `dpdmd-selected`.

    Args:
        selected: that text field.
        address: where a browser finds a job's report; without it the report goes into the page.
    """
    parts: Components = {"selected": selected, "seen": gr.State({})}
    with gr.Row(elem_classes=["dp-columns"], elem_id="dpdmd-runs"):
        with gr.Column(scale=3, min_width=250, elem_classes=["dp-list"]):
            markup(heading("Runs and queue", "One at a time. Closing this page stops nothing."))
            parts["list"] = markup()
            _trash(parts)
        with gr.Column(scale=8, min_width=420, elem_classes=["dp-view"]):
            parts["status"] = markup(classes=["dp-status"])
            with gr.Row(elem_classes=["dp-buttons"]):
                for name, label in LABELS.items():
                    parts[name] = gr.Button(
                        label,
                        variant="primary" if name == "start" else "secondary",
                        size="sm",
                        min_width=90,
                        visible=False,
                        elem_id=f"dpdmd-run-{name}",
                    )
            parts["message"] = note()
            parts["findings"] = markup()
            parts["images"] = markup()
            parts["curves"] = markup()
            _folded(parts, "more", "More curves")
            parts["files"] = markup(classes=["dp-files"])
            _more(parts)
    parts["refresh"] = hidden_button(REFRESH)
    _wire(parts, address)
    return parts


def _trash(parts: Components) -> None:
    with gr.Accordion("Trash", open=False):
        parts["trash"] = dropdown(
            choices=[], value=None, label="Deleted runs", allow_custom_value=True
        )
        with gr.Row():
            parts["look"] = gr.Button("Look again", size="sm", min_width=90)
            parts["restore"] = gr.Button("Take back", size="sm", min_width=90)


def _folded(parts: Components, name: str, title: str) -> None:
    with gr.Accordion(title, open=False, visible=False) as parts[f"{name}_box"]:
        parts[name] = markup()


def _more(parts: Components) -> None:
    _folded(parts, "report", "Report")
    _folded(parts, "log", "Log")
    with gr.Accordion("Rename", open=False), gr.Row(elem_classes=["dp-with-button"]):
        parts["new_title"] = gr.Textbox(
            label="Title", info="For your eyes; files keep their names.", max_lines=1, scale=5
        )
        parts["rename"] = gr.Button("Rename", scale=1, min_width=110)


def refresh_event(
    event: Any, parts: Components, address: view.Address | None, *, keep_message: bool = False
) -> Any:
    """Have `event` bring the page up to date."""

    def handler(values: Values) -> Values:
        selected, seen = values.get("selected"), values.get("seen")
        return view.refresh(selected, seen, address, keep_message=keep_message)

    return on(event, handler, parts, ("selected", "seen"), OUTPUTS)


def _wire(parts: Components, address: view.Address | None) -> None:
    refresh_event(parts["refresh"].click, parts, address)
    acted = ("message", "selected")
    for name in view.BUTTONS:
        event = on(parts[name].click, _action(name), parts, ("selected",), acted)
        event = refresh_event(event.then, parts, address, keep_message=True)
        if name == "delete":
            on(event.then, _trashed, parts, (), ("trash",))
    event = on(parts["rename"].click, _action("rename"), parts, ("selected", "new_title"), acted)
    refresh_event(event.then, parts, address, keep_message=True)
    event = on(parts["restore"].click, _action("restore"), parts, ("trash",), acted)
    event = refresh_event(event.then, parts, address, keep_message=True)
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
