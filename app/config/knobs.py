"""What the settings class is made of: a knob with its help and bounds, and the checks of its value.

Imports neither torch nor any host.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import field
from typing import Any

from ...core.errors import SettingsError

# 0 and "" mean "choose for me" in the settings whose help says so.
AUTO = "auto"
MAX_WHOLE_NUMBER = 2**63
WHOLE_NUMBER = re.compile(r"\d{1,18}")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def knob(
    default: Any,
    help: str,
    *,
    group: str = "training",
    within: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with what a person needs to know of it: help, bounds or choices.

    Args:
        within: the least and the most that a number may be.
    """
    low, high = within or (None, None)
    metadata = {"help": help, "group": group, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


def parse_resolutions(text: str) -> tuple[tuple[int, int], ...]:
    """(width, height) pairs of "1024x1024,832x1216"; "512" means a square; "" gives none."""
    pairs = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        sides = part.lower().split("x")
        if len(sides) > 2 or not all(WHOLE_NUMBER.fullmatch(side.strip()) for side in sides):
            raise SettingsError(
                f"resolution {part[:60]!r} is not understood; write width x height, such as "
                "1024x1024 or 832x1216, several separated by commas."
            )
        width, height = int(sides[0]), int(sides[-1])
        if not (16 <= width <= 8192 and 16 <= height <= 8192):
            raise SettingsError(f"resolution {part} is outside 16 to 8192 pixels a side.")
        pairs.append((width, height))
    return tuple(pairs)


def check_value(spec: dataclasses.Field[Any], value: Any) -> None:
    """Raise SettingsError unless the value is of the knob's type and within its bounds."""
    expected: type = type(spec.default)
    if expected is float and type(value) is int and abs(value) < MAX_WHOLE_NUMBER:
        value = float(value)
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise SettingsError(
            f"{spec.name} is {value!r} ({type(value).__name__}); expected {expected.__name__}."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{spec.name} is {value}; expected a finite number.")
    if type(value) is int and abs(value) >= MAX_WHOLE_NUMBER:
        raise SettingsError(f"{spec.name} is a whole number of more than 18 digits.")
    if isinstance(value, str) and LONE_SURROGATE.search(value):
        raise SettingsError(
            f"{spec.name} holds half a character (a lone surrogate). Type that place anew."
        )
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if choices is not None and value not in choices:
        raise SettingsError(f"{spec.name} is {value!r}; expected one of {', '.join(choices)}.")
    if low is not None and value < low:
        raise SettingsError(f"{spec.name} is {value}; the least allowed is {low:g}.")
    if high is not None and value > high:
        raise SettingsError(f"{spec.name} is {value}; the most allowed is {high:g}.")
