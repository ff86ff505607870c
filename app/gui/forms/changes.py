"""What a handler asks of the page's controls: plain data that the page turns into updates.

A control named `<part>_note` holds the message about a part of the form; "" where all is well.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ....core.errors import DPDMDError
from ....core.files import atomic_write
from ...jobs import Job
from ...prompts.reading import prompts_text
from ..widgets.html import error_note, note

Values = dict[str, Any]
"""Control name -> new value, or a `Change` of its properties. What is not named stays."""
Handler = Callable[[Values], Values]


class Change(dict[str, Any]):
    """New properties of a control (choices, value, visible, interactive) by name."""


class FormError(DPDMDError):
    """What is wrong, and which part of the form it belongs to."""

    def __init__(self, part: str, error: DPDMDError | str) -> None:
        super().__init__(str(error))
        self.part = part


@contextlib.contextmanager
def belongs_to(part: str) -> Iterator[None]:
    """Raise what goes wrong in the block as FormError of that part of the form."""
    try:
        yield
    except DPDMDError as error:
        raise FormError(part, error) from error


def noted_at(part: str) -> Callable[[Handler], Handler]:
    """Have a handler answer with the part's note alone where it fails."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def noting(values: Values) -> Values:
            try:
                return handler(values)
            except DPDMDError as error:
                return {f"{part}_note": error_note(error)}

        return noting

    return decorate


def text_of(values: Mapping[str, Any], name: str) -> str:
    """What was typed into a control, without space around it; "" for nothing."""
    return str(values.get(name) or "").strip()


def write_prompts(path: Path, prompts: Iterable[str]) -> str:
    """Write the prompts of a task beside what it makes; the command's option that names them.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write.explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write.write_text(path, prompts_text(prompts))
    return f"--prompts={path}"


def failed(parts: Iterable[str], error: DPDMDError) -> Values:
    """The notes of all parts after a failed start: the message is at its part, else at "start"."""
    where = error.part if isinstance(error, FormError) else "start"
    return {f"{part}_note": error_note(error if part == where else "") for part in parts}


def started(parts: Iterable[str], job: Job, more: str = "") -> Values:
    """The notes of all parts after a start; the job comes into view on the Runs page."""
    text = f"{job.title} is in the queue. Its progress is on the Runs page.{more}"
    return {f"{part}_note": "" for part in parts} | {
        "start_note": note(text, "done"),
        "selected": job.id,
        "tabs": Change(selected="runs"),
    }
