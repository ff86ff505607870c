"""The pages' own HTML, from templates/; whatever is shown is escaped there."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ....core.errors import DPDMDError
from ...findings.diagnosis import Finding
from ...findings.outcome import TOO_VARIED
from ...report.templating import html_templates
from .page_words import in_page_words

MAX_IMAGE_BYTES = 24 << 20
LEVELS = {"problem": "Problem", "warning": "Look at this", "info": "Note"}
"""Levels of findings in words."""
DIVERSITY_SCALE = 1.25
"""Right end of the diversity meter as a share of the teacher's diversity."""
TEMPLATES = html_templates(Path(__file__).parent / "templates")


def render(template: str, **values: object) -> str:
    """A template's text with these values."""
    return TEMPLATES.get_template(template).render(values).strip()


def piece(name: str, *values: object) -> str:
    """What a macro of pieces.html makes of these values."""
    return str(getattr(TEMPLATES.get_template("pieces.html").module, name)(*values)).strip()


def error_note(message: object) -> str:
    """What is wrong with a control; "" for no message. Errors of ours get the page's words."""
    said = in_page_words(str(message)) if isinstance(message, DPDMDError) else message
    return piece("error_note", said) if message else ""


def note(message: object, kind: str = "quiet") -> str:
    """A short remark; "" for no message. Kinds: quiet, done."""
    return piece("note", message, kind) if message else ""


def heading(title: str, text: str = "", *, level: int = 2) -> str:
    """A section's title and one line of explanation."""
    return piece("heading", title, text, level)


def facts(pairs: Mapping[str, object]) -> str:
    """A list of names and values; empty values are left out."""
    shown = [(name, value) for name, value in pairs.items() if value not in (None, "")]
    return piece("facts", shown) if shown else ""


def copyable(label: str, text: str) -> str:
    """A path or command with a button that copies it."""
    return piece("copyable", label, text)


def prompt_tag(tag: str) -> str:
    """What calls a LoRA in a prompt, with buttons that copy it and write it there."""
    return piece("prompt_tag", tag)


def diversity_meter(kept: float, step: int) -> str:
    """The student's diversity on a scale where the teacher's is 100 %."""
    if not math.isfinite(kept):
        return ""
    return piece("diversity_meter", kept, step, DIVERSITY_SCALE, kept >= TOO_VARIED)


def findings(found: Sequence[Finding]) -> str:
    """What the diagnosis says, in its order: gravest first."""
    shown = [(LEVELS[item.level], item.level, item) for item in found]
    return piece("findings", shown) if shown else ""


def encoded_image(path: Path) -> str:
    """A PNG file in base64, to stand in a page; "" if it cannot be read or is far too large."""
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            return ""
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""


def frame(title: str, *, address: str | None, path: Path, plain: bool = False) -> str:
    """A report inside the page, without scripts: from an address, or with its text inside.

    Args:
        plain: whether the text has no style sheet of its own.
    """
    if address:
        return piece("frame_at", title, address)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return error_note(f"{path} cannot be read: {error}.")
    return piece("frame_of", title, text, plain)


def empty(title: str, text: str) -> str:
    """What a page shows before there is anything to show."""
    return piece("empty", title, text)


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 20 min", "2 d 4 h"; "" if unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
