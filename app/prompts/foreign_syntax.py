"""What other programs would carry out in a prompt, and nothing here does: it is counted.

Such a piece is read as the words that stand there. Weights, BREAK and `{a|b}` mean something here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Each runs once over all prompts, one a line, so none may look far ahead.
KINDS = {
    "wildcards like __animal__": r"__(?!_)[^\s_][\w\-/*. ]*?__",
    "embedding:name": r"(?i:\bembedding:)[^\s,]",
    "prompt editing like [from:to:when]": r":[ \t]*\d*\.?\d+[ \t]*\]",
    "alternation like [a|b]": r"\[[^\[\]{}\n]*\|[^\[\]{}\n]*\]",
    "AND between prompts": r"\bAND\b",
    "regions and parts like ADDCOMM or [SEP]": r"\bADD(?:COMM|BASE|COL|ROW)\b|\[(?:SEP|PROMPT)\]",
    "tags like <name:value>": r"<[A-Za-z][^<>\n]*>",
    "options like --ar": r"(?<!\S)--?[a-z][\w\-]*[ \t]+[\d.:x]+(?!\S)|(?<!\S)--[a-z]",
    "weights like cat::2 or 2::cat::": r"(?<=[^\W\d])::[ \t]?-?\d|(?<![\w{|.])[\d.]+::[^\n{}|:]*::",
    "braces without a choice like {cat}": r"\{[^{}|\n]*\}",
    "JSON": r"""(?m:^)[ \t]*[\[{][ \t\[{]*["'][^"'\n]{0,80}["'][ \t]*:|(?m:^[\[\]{}, \t]+$)""",
    "whole lines in quotation marks": r'(?m:^"[^"\n]*",?$)',
    "list marks before a prompt": r"(?m:^)(?:[\-*•]|\d{1,5}[.)])[ \t]",
    "HTML like &amp;": r"&(?:amp|quot|lt|gt|nbsp|#\d{1,6});",
}
PATTERNS = {what: re.compile(pattern) for what, pattern in KINDS.items()}
HEAD_WORDS = {"prompt", "prompts", "text", "caption", "positive", "positive_prompt"}


def notes(prompts: Iterable[str]) -> Iterator[str]:
    """At most one sentence: which of these stand in the prompts, and how often."""
    text = "\n".join(prompts)
    counts = {what: sum(1 for _ in found.finditer(text)) for what, found in PATTERNS.items()}
    named = [f"{what} ({count}x)" for what, count in counts.items() if count]
    if named:
        yield f"Read as plain words, as nothing here carries them out: {'; '.join(named)}."


def head_note(line: str) -> Iterator[str]:
    """A sentence if a file's first line looks like the head of a table."""
    cells = [cell.strip(' "').lower().replace(" ", "_") for cell in re.split(r"[,;\t]", line[:500])]
    if HEAD_WORDS & set(cells) and all(re.fullmatch(r"\w{1,40}", cell) for cell in cells):
        yield (
            f"The first line ({line[:80]}) looks like the head of a table, and is read as a "
            "prompt. Save one prompt a line, without a head and other columns."
        )
