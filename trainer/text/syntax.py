"""Attention weights and BREAK in prompts, read as the A1111 family reads them.

`(a)` weighs 1.1, `((a))` 1.21, `[a]` 1/1.1, `(a:1.5)` 1.5; a backslash makes a bracket literal;
what is opened and never closed counts to the end. `BREAK` starts a new chunk. ComfyUI reads round
brackets the same way and takes square brackets and BREAK as plain words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND = 1.1
SQUARE = 1 / 1.1

TOKEN = re.compile(
    r"\\[\\()\[\]]"  # escaped bracket or backslash
    r"|:\s*([+-]?\d*\.?\d+)\s*\)"  # weight and closing bracket
    r"|[()\[\]]"
    r"|\bBREAK\b"
    r"|[^\\()\[\]:B]+|."
    , re.DOTALL
)  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """A stretch of text with one weight; `is_break` marks a BREAK, which has no text."""

    text: str
    weight: float = 1.0
    is_break: bool = False


def parse_prompt(prompt: str) -> list[Segment]:
    """The prompt as weighted stretches of plain text, in order.

    Neighbours of the same weight are joined, so text is tokenised in as long pieces as in hosts.
    """
    found: list[Segment] = []
    opened: list[tuple[str, int]] = []  # bracket, and how many segments stood before it
    for match in TOKEN.finditer(prompt):
        token, stated = match.group(), match.group(1)
        if token in ("(", "["):
            opened.append((token, len(found)))
        elif stated is not None and _closes(opened, "("):
            found = _weighted(found, _pop(opened, "("), float(stated))
        elif token in (")", "]") and _closes(opened, "(" if token == ")" else "["):
            start = _pop(opened, "(" if token == ")" else "[")
            found = _weighted(found, start, ROUND if token == ")" else SQUARE)
        elif token == "BREAK":
            found.append(Segment("", is_break=True))
        else:
            found.append(Segment(token[1:] if token[0] == "\\" and len(token) == 2 else token))
    for bracket, start in opened:
        found = _weighted(found, start, ROUND if bracket == "(" else SQUARE)
    return _joined(found)


def plain_text(prompt: str) -> str:
    """The prompt without its weights and BREAKs."""
    return " ".join("".join(" " if s.is_break else s.text for s in parse_prompt(prompt)).split())


def _closes(opened: list[tuple[str, int]], bracket: str) -> bool:
    return any(kind == bracket for kind, _ in opened)


def _pop(opened: list[tuple[str, int]], bracket: str) -> int:
    """Where the last `bracket` was opened; brackets of the other kind stay open."""
    index = max(i for i, (kind, _) in enumerate(opened) if kind == bracket)
    return opened.pop(index)[1]


def _weighted(segments: list[Segment], start: int, factor: float) -> list[Segment]:
    inside = [Segment(s.text, s.weight * factor, s.is_break) for s in segments[start:]]
    return segments[:start] + inside


def _joined(segments: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if last and not last.is_break and not segment.is_break and last.weight == segment.weight:
            joined[-1] = Segment(last.text + segment.text, last.weight)
        else:
            joined.append(segment)
    return joined or [Segment("")]
