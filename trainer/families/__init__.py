"""The torch half of each model family: network class, its call, and what it is told of a prompt."""

from __future__ import annotations

from ...core.families import Family
from ..model.family import TorchFamily
from . import anima, sd1, sd3, sdxl, zimage

HALVES: dict[str, TorchFamily] = {}
"""By the name of their facts."""


def register(half: TorchFamily) -> None:
    """Make the torch half of a family known."""
    assert half.facts.name not in HALVES, f"two halves of {half.facts.name}"
    HALVES[half.facts.name] = half


for _half in (sd1.HALF, sdxl.HALF, sd3.HALF, anima.HALF, zimage.HALF):
    register(_half)


def half_of(facts: Family) -> TorchFamily:
    """The torch half of a family."""
    return HALVES[facts.name]


__all__ = ["HALVES", "TorchFamily", "half_of", "register"]
