"""Several LoRAs on one network, one in force at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core.lora.file import LoraFile, LoraPair
from ...core.lora.math import delta
from ..loading.checkpoint import LoadedCheckpoint, fitting_deltas

TEACHER = "teacher"


class LoraSwitch:
    """Puts the plain checkpoint or one of several LoRAs in force; bit-exact on the way back.

    The plain weights are kept and merged copies are made when they are asked for, so memory holds
    one copy of the weights that the LoRA at hand changes.
    """

    def __init__(
        self, checkpoint: LoadedCheckpoint, loras: Mapping[str, Sequence[tuple[LoraFile, float]]]
    ) -> None:
        """`loras`: by name, the files in force together and their strengths.

        Raises:
            LoraError: one is of another family, or fits no layer.
        """
        self._network = checkpoint.network
        self._pairs: dict[str, list[Mapping[str, LoraPair]]] = {TEACHER: []}
        for name, files in loras.items():
            self._pairs[name] = [fitting_deltas(checkpoint, *file) for file in files]
        self._plain: dict[str, Tensor] = {}
        self._now = TEACHER

    @torch.no_grad()
    def use(self, name: str) -> None:
        """Put the LoRAs of that name in force, or with "teacher" none."""
        if name == self._now:
            return
        for module, weight in self._plain.items():
            self._parameter(module).data = weight
        self._plain.clear()
        for pairs in self._pairs[name]:
            for module, pair in pairs.items():
                parameter = self._parameter(module)
                self._plain.setdefault(module, parameter.data)
                change = delta(pair.to(parameter.device), parameter.shape)
                parameter.data = (parameter.data.float() + change).to(parameter.dtype)
        self._now = name

    def _parameter(self, module: str) -> Tensor:
        weight = self._network.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        return weight
