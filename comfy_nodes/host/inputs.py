"""Inputs of nodes as ComfyUI reads them, (type, options), and those that several nodes have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Input = tuple[Any, dict[str, Any]]
ZERO_IS_AUTO = "dpdmd_auto"
"""An option of numbers for which 0 takes what suits: our script shows the word auto for it."""


def node_input(kind: str | Sequence[str], tooltip: str, **options: Any) -> Input:
    """An input of a node.

    Args:
        kind: its type, or the choices of a list.
        tooltip: what the page shows over it.
        options: its default, limits and the like.
    """
    return (kind if isinstance(kind, str) else list(kind)), {"tooltip": tooltip, **options}


def seed_input(tooltip: str) -> Input:
    """A seed that the page changes after each run, as core's own do."""
    limits = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}
    return node_input("INT", tooltip, **limits, control_after_generate=True)
