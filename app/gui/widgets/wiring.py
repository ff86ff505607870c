"""Between handlers and gradio: names to components, and plain changes to updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..forms.changes import Change, Values
from ..forms.controls import Control
from .dropdown import OLD, Labels, dropdown, labels_of

Components = dict[str, Any]
"""Control name -> gradio component."""
Handler = Callable[[Values], Values]
NO_INPUTS = (gr.HTML, gr.File, gr.Column)


@dataclass(frozen=True)
class Page:
    """A built page.

    Attributes:
        parts: its components by name.
        opening: all that it shows when it is opened, by name.
        opened: the names that `opening` gives.
        done: the events after which another page is shown.
    """

    parts: Components
    opening: Handler
    opened: tuple[str, ...]
    done: tuple[Any, ...]

    def when(self, event: Any) -> Any:
        """Have `event` show the page as it is when opened."""
        names = [name for name in self.opened if not isinstance(self.parts[name], NO_INPUTS)]
        return on(event, self.opening, self.parts, names, self.opened)


def on(
    event: Any,
    handler: Handler,
    components: Mapping[str, Any],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
) -> Any:
    """Have `event` call the handler with the inputs' values by name; its answer changes outputs.

    Args:
        event: such as `button.click`, or the `then` of another event.
    """
    names, shown = list(inputs), list(outputs)
    given = [(name, labels_of(components[name])) for name in names]
    taking = [(name, labels_of(components[name])) for name in shown]

    def call(*values: Any) -> Any:
        pairs = zip(given, values, strict=True)
        found = handler({name: _plain(value, labels) for (name, labels), value in pairs})
        updates = [_update(name, found, labels) for name, labels in taking]
        return updates[0] if len(updates) == 1 else updates

    return event(
        call,
        [components[name] for name in names],
        [components[name] for name in shown],
        queue=False,
        show_progress="hidden",
        api_name=False,
    )


def _plain(value: Any, labels: Labels | None) -> Any:
    """An uploaded file as its path (older versions hand over an open file), a label's value."""
    return labels.value(value) if labels else getattr(value, "name", value)


def _update(name: str, found: Values, labels: Labels | None = None) -> Any:
    if name not in found:
        return gr.update()
    value = found[name]
    if labels is not None:
        change = value if isinstance(value, Change) else {"value": value}
        return gr.update(**labels.shown(change))
    if isinstance(value, Change):
        return gr.update(**value)
    if name == "seen":  # a State: its value itself
        return value
    if name.endswith("_note") or name == "message":
        return gr.update(value=value, visible=bool(value))
    return gr.update(value=value)


def component(control: Control, value: Any) -> Any:
    """The widget of one setting."""
    common = {"label": control.label, "info": control.info, "value": value}
    if control.kind == "switch":
        return gr.Checkbox(**common)
    if control.kind == "choice":
        return dropdown(choices=list(control.choices), **common)
    if control.kind == "text":
        return gr.Textbox(max_lines=1, **common)
    return gr.Number(precision=0 if control.kind == "whole" else None, **common)


def several(properties: Change, label: str, info: str | None = None) -> Any:
    """A dropdown of which several can be chosen.

    It takes values that are not in its list: lists age while a page is open, and what was chosen
    is checked anyway. gradio 3 knows that for single choices alone.
    """
    custom: dict[str, Any] = {} if OLD else {"allow_custom_value": True}
    return dropdown(**properties, multiselect=True, label=label, info=info, **custom)


def note() -> Any:
    """The place for a message under a group of controls; takes no room until there is one."""
    return gr.HTML(value="", visible=False, elem_classes=["dp", "dp-note"])


def markup(value: str = "", *, visible: bool = True, classes: Iterable[str] = ()) -> Any:
    """A piece of our own HTML."""
    return gr.HTML(value=value, visible=visible, elem_classes=["dp", *classes])


def hidden_button(elem_id: str) -> Any:
    """A button for scripts: in the page, but neither seen nor reached by keyboard."""
    return gr.Button("", elem_id=elem_id, elem_classes=["dp-hidden"])
