"""What a handler asks of the page's controls: plain data that the page turns into updates."""

from __future__ import annotations

from typing import Any

from ....core.errors import DPDMDError
from ..widgets.html import error_note

Values = dict[str, Any]
"""Control name -> new value, or a `Change` of its properties. What is not named stays."""


class Change(dict[str, Any]):
    """New properties of a control (choices, value, visible, interactive) by name."""


def errors(names: tuple[str, ...], failed: dict[str, DPDMDError | str]) -> Values:
    """The notes `<name>_note`: a message where something failed, empty elsewhere."""
    return {f"{name}_note": error_note(failed.get(name, "")) for name in names}
