"""Messages that the command line words by its options, in the words of the page Distil."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.option_words import reworded
from ...config.request import OTHER_FILES
from ..forms.controls import controls

PLACES = {
    **{name.replace("_", "-"): label for name, label in OTHER_FILES.items()},
    "preset": "Memory of your graphics card",
    "prompts": "Your prompts",
    "output": "Name of the LoRA",
    "teacher-lora": "LoRAs merged into the checkpoint",
    "include-teacher-loras": "The new LoRA holds them, too",
    "no-fit-memory": "Fit memory (off)",
}
"""Options whose control has another name than the setting, or that are none."""


def in_page_words(text: str) -> str:
    """The text with options by the labels of their controls, in quotes."""
    return reworded(text, _named)


def _named(options: Sequence[str]) -> str | None:
    labels = []
    for name in options:
        control = controls().get(name.replace("-", "_"))
        label = PLACES.get(name, control.label if control else None)
        if label is None:
            return None
        labels.append(f"\N{LEFT DOUBLE QUOTATION MARK}{label}\N{RIGHT DOUBLE QUOTATION MARK}")
    return " and ".join(labels)
