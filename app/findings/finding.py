"""One thing to know of a run, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["info", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "info")
"""The worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing to know of a run; `text` says what was seen and what to do."""

    level: Level
    title: str
    text: str
