"""LoRA layers that cost less than PEFT's own: fewer passes over the activations, fewer copies kept.

PEFT's forward brings a layer's input to the adapter's float32, from where autocast takes it back to
the network's format. Each layer so keeps a copy of its own of an input that several share, and a
card spends as long on these casts as on the product. What is computed here is the same sum, up to
rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn


class AdaptedLinear(lora.Linear):
    """base(x) + B A x of the active role, with the sum inside the second product."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, shape (..., features)."""
        result = self.base_layer(x)
        if self.disable_adapters:
            return result
        role = self._active_adapter[0]
        hidden = self.lora_A[role](x)
        weight: Any = self.lora_B[role].weight
        rows = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), weight.t())
        return rows.view(result.shape)


class AdaptedConv2d(lora.Conv2d):
    """base(x) + B A x of the active role; B is a convolution of 1 x 1."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, shape (B, C, H, W)."""
        result = self.base_layer(x)
        if self.disable_adapters:
            return result
        role = self._active_adapter[0]
        return result + self.lora_B[role](self.lora_A[role](x))


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv2d: AdaptedConv2d,
}
