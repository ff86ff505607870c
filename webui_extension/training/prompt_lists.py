"""Prompts that the host holds: the user's styles, and wildcard files of extensions."""

from __future__ import annotations

from pathlib import Path

from ...app.prompts.reading import read_prompts
from ...core.errors import PromptError
from ..host import folders

STYLES = "Your styles"
MOST = 200
"""Wildcard files that are listed; collections of thousands would fill the whole page."""


def names() -> list[str]:
    """The lists that hold anything."""
    return ([STYLES] if _styles() else []) + list(_wildcards())


def read(name: str) -> str:
    """The prompts of a list, one a line.

    Raises:
        PromptError: there is no such list, or it cannot be read.
    """
    if name == STYLES:
        return "\n".join(_styles()) + "\n"
    path = _wildcards().get(name)
    if path is None:
        raise PromptError(f"There is no list of prompts named {name}. Reload the page.")
    return "\n".join(read_prompts(path).prompts) + "\n"


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
