"""Dropdowns whose entries have a label and a value, also in gradio 3, which knows labels alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

OLD = gr.__version__.startswith("3.")


class Labels:
    """What a dropdown of gradio 3 shows for its values, and back."""

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
    component.dpdmd_labels = labels
    return component


def labels_of(component: Any) -> Labels | None:
    """What is needed to translate for a component; None where nothing is to be translated."""
    return getattr(component, "dpdmd_labels", None)
