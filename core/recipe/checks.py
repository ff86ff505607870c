"""Checks for the fields of a recipe: each returns the value, cleaned, or raises a RecipeError."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..errors import RecipeError

PREDICTIONS = ("x0", "eps", "v", "flow")
SOLVERS = ("ode", "sde")
# Room for the longest recipe that can be built, twelve characters of JSON for each of its own.
MAX_RECIPE_CHARACTERS = 262_144
MAX_PROMPT = 10_000
MAX_NAME = 255
MAX_RECORDS = 32
MAX_UNKNOWN_FIELDS = 64
MAX_SIDE = 16_384

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
Record = TypeVar("Record")


def require(condition: bool, problem: str, found: object) -> None:
    """Raise with `problem` and what was found, shortened, unless the condition holds."""
    if not condition:
        raise RecipeError(
            f"The sampling recipe is broken: {problem}; found {_shown(found)}. "
            "The LoRA itself may be fine: choose its settings by hand, or write it again."
        )


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge whole number"
    if not isinstance(value, str | int | float | list | tuple | None):
        return type(value).__name__
    shown = ascii(list(value)[:8]) if isinstance(value, list | tuple) else ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def whole(value: object, name: str, low: int, high: int) -> int:
    """A whole number of low..high."""
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    require(good, f"{name} must be a whole number of {low} to {high}", value)
    return value  # type: ignore[return-value]


def number(value: object, name: str, low: float, high: float) -> float:
    """A finite number of low..high."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    require(good, f"{name} must be a number of {low:g} to {high:g}", value)
    return float(value)  # type: ignore[arg-type]


def numbers(value: object, name: str, count: int, high: float) -> tuple[float, ...]:
    """`count` finite numbers of 0..high."""
    good = isinstance(value, list | tuple) and len(value) == count
    require(good, f"{name} must be a list of {count} numbers", value)
    return tuple(number(item, name, 0, high) for item in value)  # type: ignore[union-attr]


def boolean(value: object, name: str) -> bool:
    """True or False, nothing else."""
    require(isinstance(value, bool), f"{name} must be true or false", value)
    return bool(value)


def one_of(value: object, name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words."""
    good = isinstance(value, str) and value in allowed
    require(good, f"{name} must be one of {', '.join(allowed)}", value)
    return str(value)


def token(value: object, name: str) -> str:
    """A short lower-case word."""
    good = isinstance(value, str) and re.fullmatch(r"[a-z0-9_]{1,40}", value) is not None
    require(good, f"{name} must be a short lower-case word", value)
    return str(value)


def text(value: object, name: str, limit: int, *, lines: bool = False) -> str:
    """Text without control characters (line breaks allowed where `lines`), up to `limit` long."""
    good = isinstance(value, str) and len(value) <= limit
    require(good, f"{name} must be text of up to {limit} characters", value)
    control = CONTROL_BUT_LINES if lines else CONTROL
    require(control.search(str(value)) is None, f"{name} must not hold control characters", value)
    return str(value)


def hex_text(value: object, name: str, digits: int) -> str:
    """That many lower-case hexadecimal digits, or nothing."""
    good = isinstance(value, str) and re.fullmatch(rf"([0-9a-f]{{{digits}}})?", value) is not None
    require(good, f"{name} must be {digits} lower-case hexadecimal digits", value)
    return str(value)


def optional(check: Callable[..., object], value: object, *limits: object, **options: bool) -> None:
    """Run the check unless the value is None."""
    if value is not None:
        check(value, *limits, **options)


def resolution_list(value: object) -> tuple[tuple[int, int], ...]:
    """Pairs of width and height."""
    good = isinstance(value, list | tuple) and len(value) <= MAX_RECORDS
    require(good, f"resolutions must be a list of at most {MAX_RECORDS} pairs", value)
    pairs = []
    for pair in value:  # type: ignore[union-attr]
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        require(is_pair, "a resolution must be [width, height]", pair)
        pairs.append((whole(pair[0], "width", 8, MAX_SIDE), whole(pair[1], "height", 8, MAX_SIDE)))
    return tuple(pairs)


def records(value: object, name: str, record_type: type[Record]) -> tuple[Record, ...]:
    """Objects of one record class, from themselves or from mappings; extra fields are dropped."""
    good = isinstance(value, list | tuple) and len(value) <= MAX_RECORDS
    require(good, f"{name} must be a list of at most {MAX_RECORDS} objects", value)
    return tuple(_record(item, name, record_type) for item in value)  # type: ignore[union-attr]


def _record(item: object, name: str, record_type: type[Record]) -> Record:
    if isinstance(item, record_type):
        return item
    require(isinstance(item, Mapping), f"{name} must hold objects", item)
    known = require_fields(record_type, item, name)  # type: ignore[arg-type]
    return record_type(**{key: item[key] for key in known if key in item})  # type: ignore[index, operator]


def require_fields(record_type: type, given: Mapping[str, object], name: str) -> list[str]:
    """All field names of a record class; raises when `given` lacks one that has no default."""
    fields = dataclasses.fields(record_type)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [key for key in required if key not in given]
    require(not missing, f"{name} lacks fields", missing)
    return [field.name for field in fields]
