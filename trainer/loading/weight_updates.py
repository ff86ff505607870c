"""What LoRAs add to the weights of a network while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...core.lora.math import LoraPair, delta


@dataclass
class Updates:
    """What is added to stored weights, in fp32, before they are rounded to the network's dtype.

    Attributes:
        deltas: low-rank updates by module name, of each LoRA, added in their order.
        origin: [SHA256 of the LoRA file, strength] of each LoRA they come from, in that order.
    """

    deltas: list[Mapping[str, LoraPair]] = field(default_factory=list)
    origin: list[tuple[str, float]] = field(default_factory=list)

    def add(self, deltas: Mapping[str, LoraPair], sha256: str, strength: float) -> None:
        """Take in what one more LoRA adds."""
        self.deltas.append(deltas)
        self.origin.append((sha256, strength))

    def added(self, parameter: str, stored: Tensor) -> Tensor:
        """The stored value with the updates of that parameter, in fp32."""
        value, module = stored.float(), parameter.removesuffix(".weight")
        for deltas in self.deltas:
            if module in deltas:
                value = value + delta(deltas[module].to(value.device), value.shape)
        return value

    def change(self, parameter: str) -> bool:
        """Whether anything is added to that parameter."""
        module = parameter.removesuffix(".weight")
        return module != parameter and any(module in deltas for deltas in self.deltas)
