"""Messages that the command line words by its options, in the words of the Distill node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from ...app.config.distill_config import DistillConfig
from ...core.errors import DPDMDError
from .knob_inputs import SHOWN, SHOWN_LAST

INPUTS = {
    "clip-l": "clip_l",
    "clip-g": "clip_g",
    "t5": "t5",
    "qwen": "qwen",
    "vae": "vae",
    "teacher-lora": "teacher_lora",
    "prompts": "prompts_file",
    "output": "output_name",
    "preset": "preset",
}
"""Options that are an input of another name, or of no setting."""
_SETTINGS = {spec.name for spec in fields(DistillConfig)}
_OPTIONS = re.compile(r"`?--[a-z][a-z0-9-]*`?(?: FILE(?::STRENGTH)?)?")
_SEVERAL = re.compile(rf"{_OPTIONS.pattern}(?:(?: and | ){_OPTIONS.pattern})*")
_RUN = " (--run, or DPDMD_HOME for all runs)"


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
    text = text.replace(_RUN, " (by the environment variable DPDMD_HOME)")
    said = _SEVERAL.sub(lambda found: _named(found.group()), text)
    return said.replace("give the ", "fill in the ")


def _named(options: str) -> str:
    inputs, settings = [], []
    for name in re.findall(r"--([a-z][a-z0-9-]*)", options):
        field = name.replace("-", "_")
        if name in INPUTS or field in (*SHOWN, *SHOWN_LAST):
            inputs.append(INPUTS.get(name, field))
        elif field in _SETTINGS:
            settings.append(field)
        else:
            return options
    found = [f"the {' and '.join(inputs)} input{'s' * (len(inputs) > 1)}"] if inputs else []
    found += [f"{' and '.join(settings)} in settings_json"] if settings else []
    return " and ".join(found)
