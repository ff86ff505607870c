"""The tab "DP-DMD": the studio's pages, told what this host knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ...app.gui import studio
from ...app.gui.widgets.html import piece
from ...app.library import surroundings
from ...app.library.path_checks import is_inside, resolved
from ...app.library.surroundings import Surroundings
from ...app.prompts.reading import prompts_text, read_prompts
from ...core.errors import PromptError
from ..host import folders, page
from ..sampling.accordion import CLIP_SKIP
from . import settings
from .memory import keeper

TITLE, ID = "DP-DMD", "dpdmd"
STYLES = "Your styles"
MOST = 200
"""Wildcard files that are listed; collections of thousands would fill the whole page."""


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
        prompt_lists=prompt_lists,
        read_prompts=read_prompt_list,
        clip_skip=clip_skip,
        prompt_tag=prompt_tag,
        before_start=keeper.before_start,
    )


def clip_skip() -> int | None:
    """The clip skip that the host samples SD 1.x with."""
    found = page.option(CLIP_SKIP, None)
    return int(found) if found is not None else None


def prompt_tag(lora: Path) -> str:
    """What calls a LoRA in a prompt; "" for one outside the host's folders."""
    places = (resolved(str(folder)) for folder in folders.lora_folders())
    inside = any(is_inside(resolved(str(lora)), place) for place in places)
    return f"<lora:{lora.stem}:1>" if inside else ""


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


def prompt_lists() -> list[str]:
    """The lists of prompts that hold anything: the user's styles, wildcard files of extensions."""
    return ([STYLES] if _styles() else []) + list(_wildcards())


def read_prompt_list(name: str) -> str:
    """The prompts of a list, one a line.

    Raises:
        PromptError: there is no such list, or it cannot be read.
    """
    if name == STYLES:
        return prompts_text(_styles())
    path = _wildcards().get(name)
    if path is None:
        raise PromptError(f"There is no list of prompts named {name}. Reload the page.")
    return prompts_text(read_prompts(path).prompts)


def _styles() -> list[str]:
    """Each style once, without the place where a prompt is put into it."""
    texts = (" ".join(text.replace("{prompt}", "").split()) for text in folders.style_prompts())
    cleaned = (text.strip(" ,") for text in texts)
    return list(dict.fromkeys(text for text in cleaned if text))


def _wildcards() -> dict[str, Path]:
    """Name -> file; sd-dynamic-prompts and its relatives keep them in a folder of that name."""
    found = {}
    for extension, folder in folders.extension_folders():
        place = folder / "wildcards"
        for path in sorted(place.rglob("*.txt"))[:MOST] if place.is_dir() else []:
            found[f"Wildcards: {path.relative_to(place).with_suffix('')} ({extension})"] = path
    return dict(list(found.items())[:MOST])
