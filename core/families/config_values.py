"""Values in the configs of a diffusers folder: which are handled, and what is said of others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UnsupportedModelError

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


def are_whole(value: object) -> bool:
    """Whether it is a list of whole numbers that is not empty."""
    return isinstance(value, list | tuple) and bool(value) and all(map(is_whole, value))


def one_of(*values: object) -> Test:
    """Whether it is one of these, and of their type: true is no 1 here."""
    return lambda value: any(type(value) is type(item) and value == item for item in values)


def all_of(*values: object) -> Test:
    """Whether it is a list of some of these."""
    return lambda value: (
        isinstance(value, list | tuple) and bool(value) and all(item in values for item in value)
    )


def is_number(value: object, wanted: float) -> bool:
    """Whether it is a number as good as equal to that one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted))


def number(wanted: float) -> Test:
    """Whether it is a number as good as equal to that one."""
    return lambda value: is_number(value, wanted)


WHOLE = Rule(is_whole, "a whole number", required=True)
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
