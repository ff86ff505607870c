"""Prompts inside JSON: what other programs keep in an image, or write as a line of a file.

SwarmUI, Fooocus, RuinedFooocus, InvokeAI and NovelAI name the prompt in JSON of their own. Such a
text is no prompt itself: the one that it names is taken, or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_SEARCHED = 4096
# What begins like JSON or a printed dictionary, whether or not it is whole; a file's markup; and a
# long row of characters without a blank, such as base64.
DATA = re.compile(
    r"""\s*(?:\[\s*)*\{\s*["'][^"'\n]{0,80}["']\s*:"""
    r"|\s*<(?:\?xml|\?xpacket|!doctype|!--|html|svg|x:xmpmeta|rdf:)"
    r"|\s*[A-Za-z0-9+/=_-]{300,}\s*$",
    re.IGNORECASE,
)
# Names as `_plain` has them.
PROMPTS = ("prompt", "positiveprompt", "positive", "basecaption")
NEGATIVES = ("negativeprompt", "negative", "uc")
INNER = ("suiimageparams", "image", "metadata", "parameters", "params", "invokeaimetadata",
         "comment")  # fmt: skip


def named_prompts(text: str) -> tuple[str, str] | None:
    """(prompt, negative prompt) that data names, both empty where none; None: it is no data."""
    text = text.strip().removeprefix("\ufeff").strip()
    content = _read(text) if text.startswith(("{", "[", '"')) else None
    if isinstance(content, str):  # JSON as a text in JSON, or a prompt in quotation marks
        return named_prompts(content) if DATA.match(content) else None
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if isinstance(content, dict):
        return _named(content)
    return ("", "") if content is not None or DATA.match(text[:MAX_SEARCHED]) else None


def _read(text: str) -> Any:
    """What a JSON text holds; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _named(content: Mapping[str, Any]) -> tuple[str, str]:
    """The prompts of a table, or of one inside it that programs use for an image's settings."""
    for _ in range(3):
        table = {_plain(name): value for name, value in content.items()}
        prompt = next((found for name in PROMPTS if (found := _text(table.get(name)))), "")
        if prompt:
            negatives = (_text(table.get(name)) for name in NEGATIVES)
            return prompt, next(filter(None, negatives), "")
        inner = next((its for name in INNER if (its := _table(table.get(name)))), None)
        if inner is None:
            break
        content = inner
    return "", ""


def _table(value: object) -> Mapping[str, Any] | None:
    """A table, also one that stands as text, as NovelAI has it in a WebP."""
    if isinstance(value, str) and value.startswith("{"):
        value = _read(value)
    return value if isinstance(value, dict) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name[:80].lower())


def _text(value: object) -> str:
    """A prompt that stands as text, or as the one part of a list of weighted texts; else none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("prompt")
    if not isinstance(value, str) or DATA.match(value[:MAX_SEARCHED]):
        return ""
    return value.strip()
