"""Between handlers and gradio: controls by name, names to components, and changes to updates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..forms.changes import Change, Handler, Values
from ..forms.controls import Control
from .html import heading

Components = dict[str, Any]
"""Control name -> gradio component."""
NO_INPUTS = (gr.HTML, gr.File, gr.Column)
OLD = gr.__version__.startswith("3.")


class Labels:
    """What a dropdown of gradio 3, which knows labels alone, shows for its values, and back."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._labels: dict[Any, str] = {}

    def shown(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Properties with labels in place of (label, value) pairs and of values."""
        found = dict(properties)
        if "choices" in found:
            found["choices"] = self._take(found["choices"])
        if "value" in found:
            found["value"] = _each(found["value"], self._labels)
        return found

    def _take(self, choices: Iterable[Any]) -> list[str]:
        pairs = [pair if isinstance(pair, tuple) else (str(pair), pair) for pair in choices]
        taken: dict[str, Any] = {}
        for label, value in pairs:
            single = label if label not in taken else f"{label} [{value}]"
            taken[single] = value
        self._values |= taken  # pages that are open show earlier ones
        self._labels |= {value: label for label, value in taken.items()}
        return list(taken)

    def value(self, shown: Any) -> Any:
        """The value of what is chosen; what was typed is its own."""
        return _each(shown, self._values)


def _each(given: Any, table: Mapping[Any, Any]) -> Any:
    if isinstance(given, (list, tuple)):
        return [table.get(item, item) for item in given]
    return table.get(given, given)


def dropdown(**properties: Any) -> Any:
    """A dropdown; arguments as gradio's, and in every version choices may be (label, value)."""
    if not OLD:
        return gr.Dropdown(**properties)
    labels = Labels()
    component: Any = gr.Dropdown(**labels.shown(properties))
    component.dpdmd_labels = labels  # found by `on`
    return component


class Builder:
    """Makes the controls of a page, each kept by its name in `parts`.

    Args:
        first: what the page shows at first, by name: a value, or a `Change` with choices.
        parts: components of other pages that this one changes.
    """

    def __init__(self, first: Values, **parts: Any) -> None:
        self.first = first
        self.parts: Components = parts

    def _given(self, name: str) -> dict[str, Any]:
        return _change(self.first[name]) if name in self.first else {}

    def text(self, name: str, label: str, info: str | None = None, **more: Any) -> None:
        """A field for one line of text, or for several with `lines` and `max_lines`."""
        settings = {"max_lines": 1, "info": info, **self._given(name), **more}
        self.parts[name] = gr.Textbox(label=label, **settings)

    def checkbox(self, name: str, label: str, info: str) -> None:
        """A switch."""
        self.parts[name] = gr.Checkbox(value=bool(self.first[name]), label=label, info=info)

    def dropdown(self, name: str, label: str, info: str | None = None, **more: Any) -> None:
        """A choice of one; what is not in its list can be typed unless it is said otherwise.

        Lists age while a page is open, and what was chosen is checked anyway.
        """
        settings = {"allow_custom_value": True, "info": info, **self._given(name), **more}
        self.parts[name] = dropdown(label=label, **settings)

    def several(self, name: str, label: str, info: str | None = None) -> None:
        """A choice of several; gradio 3 knows typed values for single choices alone."""
        self.dropdown(name, label, info, multiselect=True, allow_custom_value=not OLD)

    def setting(self, control: Control) -> None:
        """The widget of one setting of a run."""
        common: dict[str, Any] = {
            "label": control.label,
            "info": control.info,
            "value": self.first[control.name],
        }
        if control.kind == "switch":
            made = gr.Checkbox(**common)
        elif control.kind == "choice":
            made = dropdown(choices=list(control.choices), **common)
        elif control.kind == "text":
            made = gr.Textbox(max_lines=1, **common)
        else:
            made = gr.Number(precision=0 if control.kind == "whole" else None, **common)
        self.parts[control.name] = made

    def button(self, name: str, label: str, **more: Any) -> None:
        """A button."""
        self.parts[name] = gr.Button(label, **more)

    def button_beside(self, name: str, label: str) -> None:
        """The button in a row `with_button`."""
        self.button(name, label, scale=1, min_width=110)

    def start(self, label: str, elem_id: str) -> None:
        """The button that starts the job, and above it why it does not: both always in view."""
        with gr.Column(min_width=0, elem_classes=["dp-start"]):
            self.note("start_note")
            self.button("start", label, variant="primary", elem_id=elem_id)

    def markup(self, name: str, *classes: str) -> None:
        """A piece of our own HTML."""
        settings = {"value": "", **self._given(name)}
        self.parts[name] = gr.HTML(elem_classes=["dp", *classes], **settings)

    def note(self, name: str) -> None:
        """The place for a message under a group of controls; takes no room until there is one."""
        text = self.first.get(name, "")
        self.parts[name] = gr.HTML(value=text, visible=bool(text), elem_classes=["dp", "dp-note"])


Part = Callable[[Builder], None]
"""Makes a part of a page."""


def title(text: str, more: str = "") -> None:
    """The heading of what follows, with one line of explanation."""
    gr.HTML(value=heading(text, more), elem_classes=["dp"])


@contextlib.contextmanager
def section(text: str, more: str = "", kind: str = "dp-section") -> Iterator[None]:
    """A part of a page under its heading."""
    with gr.Column(elem_classes=[kind]):
        title(text, more)
        yield


def form_and_start(made: Builder, form: Iterable[Part], start: Part) -> None:
    """A wide column, where the form is filled in, and beside it what starts the job."""
    with gr.Row(elem_classes=["dp-columns"]):
        with gr.Column(scale=7, min_width=320, elem_classes=["dp-form"]):
            for part in form:
                part(made)
        with gr.Column(scale=4, min_width=280, elem_classes=["dp-aside"]):
            start(made)


def with_button() -> Any:
    """A row of a control and a button that does something with it."""
    return gr.Row(elem_classes=["dp-with-button"])


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
    labels = {name: getattr(components[name], "dpdmd_labels", None) for name in (*names, *shown)}

    def call(*values: Any) -> Any:
        pairs = zip(names, values, strict=True)
        found = handler({name: _plain(value, labels[name]) for name, value in pairs})
        updates = [_update(name, found, labels[name]) for name in shown]
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


def _change(value: Any) -> dict[str, Any]:
    return value if isinstance(value, Change) else {"value": value}


def _update(name: str, found: Values, labels: Labels | None = None) -> Any:
    if name not in found:
        return gr.update()
    value = found[name]
    if name == "seen":  # a State: its value itself
        return value
    change = _change(value)
    if labels is not None:
        change = labels.shown(change)
    elif name.endswith("_note") or name == "message":
        change = {"value": value, "visible": bool(value)}
    return gr.update(**change)
