"""Markdown from templates: every value is shown as it stands, whoever wrote it.

The templates themselves are Markdown. A value becomes markup only by what is named here.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .names import one_line

SPECIAL = re.compile(r"([\\`*_\[\]#|~!$])")
BLOCK_START = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+=])")
LONGEST = 2000
TEMPLATES = Path(__file__).parent / "templates"


def text(value: object) -> Markup:
    """The value on one line, so that Markdown shows it and nothing more."""
    if isinstance(value, Markup):
        return value
    line = html.escape(one_line(value, LONGEST), quote=False)
    line = SPECIAL.sub(r"\\\1", line)
    return Markup(line.replace("://", "\\://").replace("www.", "www\\.").replace("@", "&#64;"))


def line(value: object) -> Markup:
    """The value at the beginning of a line, where it begins no list, heading or quotation."""
    return Markup(
        BLOCK_START.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", text(value))
    )


def code(value: object) -> Markup:
    """The value as text to be copied as it is."""
    plain = one_line(value, LONGEST)
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    padding = " " if plain.startswith("`") or plain.endswith("`") else ""
    return Markup(f"{fence}{padding}{plain}{padding}{fence}")


def yaml(value: str) -> Markup:
    """A YAML scalar that is this text, whatever it holds (a JSON string is one)."""
    return Markup(json.dumps(one_line(value, LONGEST) or " ", ensure_ascii=False))


def markdown_templates() -> Environment:
    """The package's Markdown; what a template shows goes through `text`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(line=line, code=code, yaml=yaml, one_line=one_line)
    return environment
