"""Lets an environment import the host's torch, and nothing else of the host.

A copy of this file lies in the environment's packages; the list beside it (same name, `.json`) maps
the few top-level names to the folder each is found in. The finder comes last, so that a package of
the environment always wins.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

LIST = Path(__file__).with_suffix(".json")


class BorrowedTorchFinder:
    """Finds the listed top-level modules, each in its one folder of the host."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's place in the host, or None for every name that is not on the list."""
        folder = self.folders.get(name)
        return None if folder is None else PathFinder.find_spec(name, [folder])


def install(folders: dict[str, str]) -> None:
    """Put one finder at the end of the search, once."""
    if not any(type(finder).__name__ == BorrowedTorchFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(BorrowedTorchFinder(folders))  # type: ignore[arg-type]


if LIST.is_file():
    install(json.loads(LIST.read_text(encoding="utf-8")))
