"""What LoRAs add to the weights of a network while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...core.lora_math import LoraPair, delta


@dataclass
class Updates:
    """What is added to stored weights, in fp32, before they are rounded to the network's dtype.

    Attributes:
        pairs: low-rank updates by module name, added in their order.
        origin: [SHA256 of the LoRA file, strength] of each LoRA they come from, in that order.
    """

    pairs: dict[str, list[LoraPair]] = field(default_factory=dict)
    origin: list[tuple[str, float]] = field(default_factory=list)

    def add(self, deltas: Mapping[str, LoraPair], sha256: str, strength: float) -> None:
        """Take in what one more LoRA adds."""
        for module, pair in deltas.items():
            self.pairs.setdefault(module, []).append(pair)
        self.origin.append((sha256, strength))

    def added(self, parameter: str, stored: Tensor) -> Tensor:
        """The stored value with the updates of that parameter, in fp32."""
        value = stored.float()
        for pair in self.pairs.get(parameter.removesuffix(".weight"), ()):
            value = value + delta(pair.to(value.device), value.shape)
        return value

    def change(self, parameter: str) -> bool:
        """Whether anything is added to that parameter."""
        return parameter.endswith(".weight") and parameter.removesuffix(".weight") in self.pairs
