"""The accordion's values in an image's infotext: written by a generation, read when it is pasted.

One word of our own is a control's name for the host, so that "Send to img2img" carries it, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...core.recipe.anchored import GUIDED, ONE_PLAIN
from ...core.recipe.known_students import KNOWN_STUDENTS
from .auto_setup import FROM_FILE, OFF, Choices

FOUND, KIND, LORA, ANCHORED = "DP-DMD", "DP-DMD kind", "DP-DMD LoRA", "DP-DMD anchored"
STEPS, NOTES = "DP-DMD steps", "DP-DMD notes"
IMAGE_STEPS, EXACT_STRENGTH = "DP-DMD image steps", "DP-DMD exact strength"
WRITTEN = (FOUND, KIND, LORA, ANCHORED, STEPS, NOTES, IMAGE_STEPS, EXACT_STRENGTH)
"""All that is written into an infotext."""
SWITCHED_OFF = "off"
CONTROLS = (
    "DP-DMD automatic", KIND, LORA, "DP-DMD anchor", "DP-DMD anchor steps", "DP-DMD anchor CFG",
    STEPS,
)  # fmt: skip
"""Names of the accordion's controls that shape an image, in their order."""
ANCHOR = re.compile(r"(trained|\d+) steps? at CFG ([\d.]+)")


def written(choices: Choices, found: str, anchored: str) -> dict[str, str]:
    """What a generation's infotext says.

    Args:
        found: what was set for which LoRA; "" where nothing was.
        anchored: how the base model sampled the first part; "" where it did not.
    """
    named = {
        FOUND: found,
        KIND: choices.kind if found else "",
        LORA: choices.lora if found and choices.kind else "",
        ANCHORED: anchored,
        STEPS: str(choices.steps) if found and choices.steps else "",
    }
    return {key: value for key, value in named.items() if value}


def read(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The controls' values by name; empty where the image says nothing of ours.

    Args:
        parameters: an infotext as the host takes it apart.
    """
    found = parameters.get(FOUND)
    if not found:
        return {}
    kind = parameters.get(KIND)
    kind = kind if kind in KNOWN_STUDENTS else FROM_FILE
    lora = str(parameters.get(LORA) or "")
    anchor = anchor_in(str(parameters.get(ANCHORED) or ""))
    said = str(parameters.get(STEPS) or "")
    steps = int(said) if said.isdecimal() and len(said) < 4 else 0
    return dict(zip(CONTROLS, (found != SWITCHED_OFF, kind, lora, *anchor, steps), strict=True))


def anchor_in(text: str) -> tuple[str, int, float]:
    """(who samples the first part, guided steps, guidance) from the words of `Anchor.describe`."""
    matched = ANCHOR.fullmatch(text)
    if matched is None:
        return OFF, 0, 0.0
    steps, guidance = matched.groups()
    if steps == "1":
        return ONE_PLAIN, 0, float(guidance)
    return GUIDED, 0 if steps == "trained" else int(steps), float(guidance)


def paste(_: str, parameters: dict[str, Any]) -> None:
    """The host's call when an infotext is pasted: put the controls' values beside the others."""
    parameters.update(read(parameters))
