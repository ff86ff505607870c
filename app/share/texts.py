"""All texts of a package by file name."""

from __future__ import annotations

from .blocks import to_html, to_markdown
from .cards import civitai_info, model_card, upload_notes, webui_card
from .describe import description
from .facts import PackageFacts
from .workflow import workflow


def package_texts(facts: PackageFacts) -> dict[str, str]:
    """Content of every text file of the package."""
    blocks = description(facts)
    return {
        "description.md": to_markdown(blocks),
        "description.html": to_html(blocks, facts.title),
        "README.md": model_card(facts),
        "CIVITAI.txt": upload_notes(facts),
        "workflow.json": workflow(facts),
        f"{facts.name}.json": webui_card(facts),
        f"{facts.name}.civitai.info": civitai_info(facts),
    }
