"""All texts of a package by file name."""

from __future__ import annotations

from collections.abc import Callable

from .cards import civitai_info, upload_notes, webui_card
from .describe import description, description_page, model_card
from .facts import PackageFacts
from .workflow import workflow


def package_texts(facts: PackageFacts, to_html: Callable[[str], str]) -> dict[str, str]:
    """Content of every text file of the package.

    Args:
        to_html: makes HTML of Markdown; the worker has a library for it.
    """
    markdown = description(facts)
    page = description_page(facts.title, to_html(markdown))
    return {
        "description.md": markdown,
        "description.html": page,
        "README.md": model_card(facts),
        "CIVITAI.txt": upload_notes(facts),
        "workflow.json": workflow(facts),
        f"{facts.name}.json": webui_card(facts),
        f"{facts.name}.civitai.info": civitai_info(facts, page),
    }
