"""A text written once and shown twice, in Markdown and in HTML; no value can become markup.

A part of a line is a plain text, or a `Strong`, `Code` or `Link`. Everything else is shown as it
stands, whoever wrote it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .names import one_line

MARKDOWN = re.compile(r"([\\`*_\[\]#|~!$])")
BLOCK_START = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+=])")
LONGEST = 2000


@dataclass(frozen=True)
class Strong:
    """Emphasised text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is."""

    text: str


@dataclass(frozen=True)
class Link:
    """A link to one of our own fixed addresses; never to one from a file."""

    text: str
    url: str


Part = str | Strong | Code | Link


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    items: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head, plain text in each cell."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Program:
    """Lines of a program."""

    text: str
    language: str = "python"


Block = Heading | Paragraph | Bullets | Table | Program


def paragraph(*parts: Part) -> Paragraph:
    """A paragraph of these parts."""
    return Paragraph(parts)


def markdown_text(text: str) -> str:
    """The text on one line, so that Markdown shows it and nothing more."""
    line = html.escape(one_line(text, LONGEST), quote=False)
    line = MARKDOWN.sub(r"\\\1", line)
    return line.replace("://", "\\://").replace("www.", "www\\.").replace("@", "&#64;")


def _markdown_line(parts: Sequence[Part]) -> str:
    """The parts on one line, which begins no list, heading or quotation of its own."""
    line = "".join(map(_markdown_part, parts))
    return BLOCK_START.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", line)


def _markdown_part(part: Part) -> str:
    if isinstance(part, Strong):
        return f"**{markdown_text(part.text)}**"
    if isinstance(part, Link):
        return f"[{markdown_text(part.text)}]({part.url})"
    if isinstance(part, Code):
        text = one_line(part.text, LONGEST)
        fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
        padding = " " if text.startswith("`") or text.endswith("`") else ""
        return f"{fence}{padding}{text}{padding}{fence}"
    return _spaced(part, markdown_text(part))


def _spaced(text: str, shown: str) -> str:
    """The shown form with the spaces that join the text to its neighbours."""
    return " " * text.startswith(" ") + shown + " " * (len(text) > 1 and text.endswith(" "))


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub-flavoured Markdown."""
    return "\n\n".join(map(_markdown_block, blocks)) + "\n"


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + markdown_text(block.text)
    if isinstance(block, Paragraph):
        return _markdown_line(block.parts)
    if isinstance(block, Bullets):
        return "\n".join("- " + _markdown_line(item) for item in block.items)
    if isinstance(block, Program):
        return f"```{block.language}\n{block.text.strip()}\n```"
    head, *rows = [list(map(markdown_text, line)) for line in (block.head, *block.rows)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The blocks as one HTML page that loads nothing from anywhere."""
    body = "\n".join(map(_html_block, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_escaped(title)}</title>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(one_line(text, LONGEST))


def _html_part(part: Part) -> str:
    if isinstance(part, Strong):
        return f"<strong>{_escaped(part.text)}</strong>"
    if isinstance(part, Code):
        return f"<code>{_escaped(part.text)}</code>"
    if isinstance(part, Link):
        return f'<a href="{html.escape(part.url)}">{_escaped(part.text)}</a>'
    return _spaced(part, _escaped(part))


def _html_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_escaped(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{''.join(map(_html_part, block.parts))}</p>"
    if isinstance(block, Bullets):
        items = "\n".join(f"<li>{''.join(map(_html_part, item))}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Program):
        return f"<pre><code>{html.escape(block.text.strip())}</code></pre>"
    head = "".join(f"<th>{_escaped(cell)}</th>" for cell in block.head)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>"
        for row in block.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
