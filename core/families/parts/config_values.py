"""Values in the configs of a diffusers folder: which are handled, and what is said of others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ...errors import UnsupportedModelError

MAX_LAYERS, MAX_LEVELS = 100, 16
Test = Callable[[object], bool]


@dataclass(frozen=True)
class Rule:
    """What a config's entry has to be.

    Attributes:
        fits: whether a value will do.
        expected: the same for people.
        required: whether the entry has to be there.
    """

    fits: Test
    expected: str
    required: bool = False


def is_whole(value: object) -> bool:
    """Whether it is a whole number from 1 to a million."""
    return type(value) is int and 1 <= value <= 10**6


def is_count(value: object) -> bool:
    """Whether it is a number of layers that a model may have; a huge one would take for ever."""
    return is_whole(value) and int(str(value)) <= MAX_LAYERS


def are_whole(value: object) -> bool:
    """Whether it is a list of whole numbers, one for each level of a network."""
    return _is_list(value) and all(map(is_whole, value))


def are_counts(value: object) -> bool:
    """Whether it is a list of numbers of layers, one for each level of a network."""
    return _is_list(value) and all(map(is_count, value))


def _is_list(value: object) -> TypeGuard[list | tuple]:
    return isinstance(value, list | tuple) and 0 < len(value) <= MAX_LEVELS


def one_of(*values: object) -> Test:
    """Whether it is one of these, and of their type: true is no 1 here."""
    return lambda value: any(type(value) is type(item) and value == item for item in values)


def all_of(*values: object) -> Test:
    """Whether it is a list of some of these."""
    return lambda value: _is_list(value) and all(item in values for item in value)


def is_number(value: object, wanted: float) -> bool:
    """Whether it is a number as good as equal to that one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    near = 1e-6 * max(1.0, abs(wanted))
    return wanted - near <= value <= wanted + near  # no subtraction: whole numbers have no limit


def number(wanted: float) -> Test:
    """Whether it is a number as good as equal to that one."""
    return lambda value: is_number(value, wanted)


WHOLE = Rule(is_whole, "a whole number", required=True)
COUNT = Rule(is_count, f"a whole number from 1 to {MAX_LAYERS}", required=True)
WHOLES = Rule(are_whole, "a list of whole numbers", required=True)


def check_config(config: Mapping[str, object], rules: Mapping[str, Rule], label: str) -> None:
    """Refuse a config with entries that are not handled.

    Args:
        label: what messages call its file.

    Raises:
        UnsupportedModelError: with the entry and what was expected.
    """
    for name, rule in rules.items():
        if name not in config:
            if rule.required:
                raise UnsupportedModelError(
                    f"{label} has no {name}; expected {rule.expected}. It is damaged, or of a "
                    "variant that is not supported: download the folder again."
                )
        elif not rule.fits(config[name]):
            shown = repr(config[name])
            shown = shown if len(shown) <= 100 else shown[:97] + "..."
            raise UnsupportedModelError(
                f"{label}: {name} is {shown}; expected {rule.expected}. It is damaged, or of a "
                "variant that is not supported."
            )


def refuse_entries(
    config: Mapping[str, object], entries: Sequence[tuple[str, str]], label: str
) -> None:
    """Refuse a config in which one of these entries says something.

    Args:
        entries: (name, what a model with it is).
        label: what messages call its file.

    Raises:
        UnsupportedModelError: names the entry and the model.
    """
    for name, model in entries:
        if config.get(name) not in (None, False):
            raise UnsupportedModelError(
                f"{label}: {name} is set, so this is {model}, which is not supported. Give the "
                "ordinary model that it was made from."
            )
