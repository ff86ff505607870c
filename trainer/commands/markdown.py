"""Markdown as HTML (markdown-it-py, which the worker's environment has and hosts may not)."""

from __future__ import annotations

from markdown_it import MarkdownIt


def markdown_to_html(text: str) -> str:
    """CommonMark and tables as HTML; HTML that the text holds is shown as text."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
