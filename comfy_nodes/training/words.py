"""Messages that the command line words by its options, in the words of the Distill node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from ...app.config.distill_config import DistillConfig
from ...app.config.option_words import reworded
from ...app.config.request import OTHER_FILES
from ...core.errors import DPDMDError
from .knob_inputs import SHOWN, SHOWN_LAST

INPUTS = {
    **{name.replace("_", "-"): name for name in OTHER_FILES},
    "teacher-lora": "teacher_lora",
    "prompts": "prompts_file",
    "output": "output_name",
    "preset": "preset",
}
"""Options that are an input of another name, or of no setting."""
_SETTINGS = {spec.name for spec in fields(DistillConfig)}


@contextmanager
def node_words() -> Iterator[None]:
    """Inside, errors of ours are raised in the node's words."""
    try:
        yield
    except DPDMDError as error:
        said = in_node_words(str(error))
        if said == str(error):
            raise
        raise type(error)(said) from error


def in_node_words(text: str) -> str:
    """The text with options as the node's inputs, or as settings of its settings_json."""
    return reworded(text, _named)


def _named(options: Sequence[str]) -> str | None:
    inputs, settings = [], []
    for name in options:
        field = name.replace("-", "_")
        if name in INPUTS or field in (*SHOWN, *SHOWN_LAST):
            inputs.append(INPUTS.get(name, field))
        elif field in _SETTINGS:
            settings.append(field)
        else:
            return None
    found = [f"the {' and '.join(inputs)} input{'s' * (len(inputs) > 1)}"] if inputs else []
    found += [f"{' and '.join(settings)} in settings_json"] if settings else []
    return " and ".join(found)
