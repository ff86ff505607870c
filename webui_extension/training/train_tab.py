"""The tab "DP-DMD": the studio's pages, told what this host knows."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...app.gui import studio
from ...app.gui.widgets.html import piece
from ...app.library import surroundings
from ...app.library.surroundings import Surroundings
from ..host import folders, page
from . import prompt_lists, settings
from .memory import keeper

TITLE, ID = "DP-DMD", "dpdmd"


def register() -> None:
    """Give the host the tab."""
    page.on("ui_tabs", tabs)


def around(*, listed: bool = True) -> Surroundings:
    """What the host tells the pages."""
    return Surroundings(
        listed=listed,
        folders=lambda: [*folders.model_folders(), settings.lora_folder()],
        checkpoints=folders.checkpoints,
        lora_folder=settings.lora_folder,
        checkpoint=folders.chosen_checkpoint,
        prompt_lists=prompt_lists.names,
        read_prompts=prompt_lists.read,
        before_start=keeper.before_start,
    )


def tabs() -> list[tuple[Any, str, str]]:
    """The tab as the host wants it.

    The lists of files are filled when a browser opens the page: the host's start does not wait
    until all of them were looked at.
    """
    surroundings.use(around(listed=False))
    try:
        with gr.Blocks(analytics_enabled=False) as blocks, gr.Column(elem_id="dpdmd-studio"):
            gr.HTML(piece("offline"), elem_classes=["dp"])
            for show in studio.build():
                show(blocks.load)
    finally:
        surroundings.use(around())
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True  # type: ignore[attr-defined]  # else the host would freeze our values
    return [(blocks, TITLE, ID)]
