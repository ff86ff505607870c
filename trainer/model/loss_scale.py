"""The factor of float16 losses: lowered where gradients overflow, raised again when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# A latent of 1024 x 1024 pixels has 65,536 numbers: gradients of its mean losses start near 1e-5,
# where float16 loses its digits.
HIGHEST, LOWEST = 4096.0, 1.0
GROWS_AFTER = 200
"""Steps without an overflow before the factor is doubled."""
MOST_IN_A_ROW = 10
"""After so many overflows one after the other, halving will not help."""


@dataclass
class LossScale:
    """What one role's losses are multiplied by before their backward, so that none of it vanishes.

    A factor is a power of two, which changes no digit of what does not overflow.

    Attributes:
        factor: in force.
        steps: taken since the factor was changed.
        in_a_row: steps that were left out since the last that was taken.
        left_out: steps that were left out in all.
    """

    factor: float = HIGHEST
    steps: int = 0
    in_a_row: int = 0
    left_out: int = 0

    @property
    def gives_up(self) -> bool:
        """Whether too many steps were left out in a row."""
        return self.in_a_row >= MOST_IN_A_ROW

    def note(self, *, finite: bool) -> None:
        """Change the factor after a backward.

        Args:
            finite: whether its gradients are, so that its step is taken.
        """
        if not finite:
            self.factor, self.steps = max(self.factor / 2, LOWEST), 0
            self.in_a_row, self.left_out = self.in_a_row + 1, self.left_out + 1
            return
        self.steps, self.in_a_row = self.steps + 1, 0
        if self.steps >= GROWS_AFTER:
            self.factor, self.steps = min(self.factor * 2, HIGHEST), 0

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Put back what `to_dict` gave.

        Raises:
            ValueError: it is something else.
            KeyError: part of it is missing.
        """
        found = {field.name: saved[field.name] for field in fields(self)}
        counts = [found[name] for name in ("steps", "in_a_row", "left_out")]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"its loss scale counts {counts}")
        if type(found["factor"]) not in (int, float) or not LOWEST <= found["factor"] <= HIGHEST:
            raise ValueError(f"its loss scale is {found['factor']!r}")
        for name, value in found.items():
            setattr(self, name, value)
