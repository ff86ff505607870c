"""The families that are known, in the order they are tried."""

from . import anima, sd1, sd3, sdxl, zimage
from .base import Family

FAMILIES: list[Family] = []
"""In the order they are tried."""
FAMILY_LABELS: dict[str, str] = {}
"""Short label of each family by its name, in the order in which people list them."""


def register(item: Family) -> None:
    """Make a family known; it is tried before those that were known."""
    assert item.name not in FAMILY_LABELS, f"two families are named {item.name}"
    FAMILIES.insert(0, item)
    FAMILY_LABELS[item.name] = item.short_label


for _item in (sd1.FAMILY, sdxl.FAMILY, sd3.FAMILY, anima.FAMILY, zimage.FAMILY):
    register(_item)


def family(name: str) -> Family:
    """The family of that name."""
    return next(item for item in FAMILIES if item.name == name)
