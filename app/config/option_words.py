"""Messages that the command line words by its options, for front ends that have other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_OPTION = r"`?--[a-z][a-z0-9-]*`?(?: FILE(?::STRENGTH)?)?"
_SEVERAL = re.compile(rf"(?P<give>[Gg]ive )?(?P<options>{_OPTION}(?:(?: and | ){_OPTION})*)")
GIVE = {"give ": "fill in ", "Give ": "Fill in ", None: ""}
"""What is done with an option, and with a control."""
_RUN = " (--run, or DPDMD_HOME for all runs)"


def reworded(text: str, named: Callable[[Sequence[str]], str | None]) -> str:
    """The text with its options as a front end calls them.

    Args:
        named: the words for options that stand side by side, without their dashes; None leaves
            them as they are.
    """
    text = text.replace(_RUN, " (by the environment variable DPDMD_HOME)")

    def one(found: re.Match[str]) -> str:
        said = named(re.findall(r"--([a-z][a-z0-9-]*)", found["options"]))
        return found.group() if said is None else GIVE[found["give"]] + said

    return _SEVERAL.sub(one, text)
