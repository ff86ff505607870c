"""Pieces of the pages as HTML. Every text that comes from outside goes through `escape`."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...findings.diagnosis import Finding

MAX_PICTURE_BYTES = 24 << 20
LEVELS = {
    "info": ("Note", "info"),
    "warning": ("Look at this", "warning"),
    "problem": ("Problem", "problem"),
}
PLAIN_STYLE = (
    ":root{color-scheme:light dark}body{max-width:80ch;margin:24px 28px;"
    "font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    "h1{font-size:22px}h2{font-size:17px;margin-top:28px}"
    "th,td{padding:4px 24px 4px 0;text-align:left}code{font-size:13px}"
)
DIVERSITY_SCALE = 1.25
"""Right end of the diversity meter as a share of the teacher's diversity."""


def escape(text: object) -> str:
    """The text with markup made harmless, fit for elements and quoted attributes."""
    return html.escape(str(text), quote=True)


def error_note(message: object) -> str:
    """What is wrong with a control, read aloud by screen readers at once; "" for no message."""
    return f'<p class="dp-error" role="alert">{escape(message)}</p>' if message else ""


def note(message: object, kind: str = "quiet") -> str:
    """A short remark; "" for no message. Kinds: quiet, done."""
    return f'<p class="dp-{kind}" role="status">{escape(message)}</p>' if message else ""


def heading(title: str, text: str = "", *, level: int = 2) -> str:
    """A section's title and one line of explanation."""
    more = f'<p class="dp-soft">{escape(text)}</p>' if text else ""
    return f'<div class="dp-heading"><h{level}>{escape(title)}</h{level}>{more}</div>'


def facts(pairs: Mapping[str, object]) -> str:
    """A list of names and values; empty values are left out."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs.items()
        if value not in (None, "")
    )
    return f'<dl class="dp-facts">{rows}</dl>' if rows else ""


def copyable(label: str, text: str) -> str:
    """A path or command with a button that copies it."""
    return (
        f'<div class="dp-copy"><span>{escape(label)}</span><code>{escape(text)}</code>'
        f'<button type="button" data-copy="{escape(text)}" aria-label="Copy {escape(label)}">'
        "Copy</button></div>"
    )


def progress_bar(share: float, label: str) -> str:
    """A bar of `share` (0 to 1) with its text; the text is what screen readers say."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<div class="dp-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}" aria-valuetext="{escape(label)}" aria-label="Progress">'
        f'<i style="width:{percent:.1f}%"></i></div>'
    )


def diversity_meter(kept: float, step: int) -> str:
    """The student's diversity on a scale where the teacher's is 100 %."""
    if not math.isfinite(kept):
        return ""
    place = 100 * min(max(kept, 0.0), DIVERSITY_SCALE) / DIVERSITY_SCALE
    mark = 100 / DIVERSITY_SCALE
    label = f"{kept:.0%} of the teacher's diversity after update {step}"
    return (
        '<div class="dp-meter"><div class="dp-row"><h3>Diversity</h3>'
        f'<strong>{kept:.0%}</strong></div><div class="dp-scale" role="meter" aria-valuemin="0" '
        f'aria-valuemax="{DIVERSITY_SCALE * 100:.0f}" aria-valuenow="{kept * 100:.0f}" '
        f'aria-label="Diversity" aria-valuetext="{escape(label)}"><i style="width:{place:.1f}%">'
        f'</i><b style="left:{mark:.1f}%"></b></div><p class="dp-soft dp-row"><span>after update '
        f'{step:,}</span><span style="margin-right:{100 - mark - 9:.0f}%">teacher</span></p></div>'
    )


def findings(found: Sequence[Finding]) -> str:
    """What the diagnosis says, gravest first."""
    order = {"problem": 0, "warning": 1, "info": 2}
    items = []
    for item in sorted(found, key=lambda one: order.get(one.level, 3)):
        word, kind = LEVELS.get(item.level, LEVELS["info"])
        items.append(
            f'<li class="dp-finding dp-{kind}"><span class="dp-tag">{word}</span>'
            f"<div><strong>{escape(item.title)}</strong><p>{escape(item.text)}</p></div></li>"
        )
    return f'<ul class="dp-findings">{"".join(items)}</ul>' if items else ""


def picture(path: Path, description: str, caption: str) -> str:
    """A figure with the picture inside the page; "" if it cannot be read or is far too large."""
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            return ""
        content = path.read_bytes()
    except OSError:
        return ""
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><img src="data:image/png;base64,{data}"'
        f' alt="{escape(description)}"></figure>'
    )


def frame(title: str, *, address: str | None, path: Path, style: str = "") -> str:
    """A report inside the page, without scripts: from an address, or with its text inside.

    Args:
        style: a style sheet for texts that bring none.
    """
    head = f'<iframe class="dp-frame" title="{escape(title)}" sandbox="allow-popups"'
    if address:
        link = f'<a href="{escape(address)}" target="_blank" rel="noopener">Open in a new tab</a>'
        return f'<p class="dp-soft">{link}</p>{head} src="{escape(address)}"></iframe>'
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return error_note(f"{path} cannot be read: {error}.")
    sheet = f"<style>{style}</style>" if style else ""
    return f'{head} srcdoc="{escape(sheet + text)}"></iframe>'


def table_of_examples(texts: Iterable[str]) -> str:
    """Prompts as a list of quotations."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ol class="dp-examples">{items}</ol>' if items else ""


def empty(title: str, text: str) -> str:
    """What a page shows before there is anything to show."""
    return f'<div class="dp-empty"><h3>{escape(title)}</h3><p>{escape(text)}</p></div>'


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
