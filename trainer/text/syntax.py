"""Attention weights and BREAK in prompts, read as the A1111 family reads them.

`(a)` weighs 1.1, `((a))` 1.21, `[a]` 1/1.1, `(a:1.5)` 1.5; a backslash makes a bracket literal;
what is opened and never closed counts to the end. `BREAK` starts a new chunk. ComfyUI reads round
brackets the same way and takes square brackets and BREAK as plain words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ...core.errors import PromptError

FACTORS = {"(": 1.1, "[": 1 / 1.1}
MAX_WEIGHT, MAX_SHOWN = 1e6, 80
Closed = tuple[int, int, float]
"""(first piece, piece behind the last, factor) of a pair of brackets."""

TOKEN = re.compile(
    r"\\[\\()\[\]]"  # escaped bracket or backslash
    r"|:\s*([+-]?(?:\d+(?:\.\d+)?|\.\d+))\s*\)"  # weight and closing bracket
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
    pieces: list[Segment] = []
    closed: list[Closed] = []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # (token, pieces before it)
    for number, match in enumerate(TOKEN.finditer(prompt)):
        token, stated = match.group(), match.group(1)
        bracket = "[" if token == "]" else "("
        if token in opened:
            opened[token].append((number, len(pieces)))
        elif (stated is not None or token in (")", "]")) and opened[bracket]:
            factor = FACTORS[bracket] if stated is None else float(stated)
            closed.append((opened[bracket].pop()[1], len(pieces), factor))
        elif token == "BREAK":
            pieces.append(Segment("", is_break=True))
        else:
            pieces.append(Segment(token[1:] if token[0] == "\\" and len(token) == 2 else token))
    left = [(*place, FACTORS[bracket]) for bracket, places in opened.items() for place in places]
    closed += [(start, len(pieces), factor) for _, start, factor in sorted(left)]
    return _joined([*map(_weighing, pieces, _products(len(pieces), closed))])


def weighted_text(prompt: str) -> list[Segment]:
    """As `parse_prompt`, for an encoder.

    Raises:
        PromptError: a weight beyond what numbers of a network can hold.
    """
    found = parse_prompt(prompt)
    heavy = next((s.weight for s in found if not abs(s.weight) <= MAX_WEIGHT), None)
    if heavy is not None:
        shown = prompt if len(prompt) <= MAX_SHOWN else f"{prompt[:MAX_SHOWN]}..."
        raise PromptError(
            f"A part of {shown!r} weighs {heavy:.3g}; weights go up to {MAX_WEIGHT:,.0f}. "
            "Each bracket that is opened and not closed counts to the end: write \\( for a bracket "
            "that is only a letter."
        )
    return found


def plain_text(prompt: str) -> str:
    """The prompt without its weights and BREAKs."""
    return " ".join("".join(" " if s.is_break else s.text for s in parse_prompt(prompt)).split())


def _products(count: int, closed: list[Closed]) -> list[float]:
    """The weight of each piece: what closes around it, multiplied in the order of closing."""
    weights = np.ones(count)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, end, factor in closed:
            weights[start:end] *= factor
    return weights.tolist()


def _weighing(piece: Segment, weight: float) -> Segment:
    return Segment(piece.text, weight, piece.is_break)


def _joined(segments: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if last and not last.is_break and not segment.is_break and last.weight == segment.weight:
            joined[-1] = Segment(last.text + segment.text, last.weight)
        else:
            joined.append(segment)
    return joined or [Segment("")]
