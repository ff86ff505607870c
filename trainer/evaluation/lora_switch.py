"""Several LoRAs on one network, one in force at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core.lora.file import LoraFile
from ...core.lora.math import Update, delta
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
        self._updates: dict[str, list[Mapping[str, Update]]] = {TEACHER: []}
        for name, files in loras.items():
            self._updates[name] = [fitting_deltas(checkpoint, *file) for file in files]
        self._plain: dict[str, Tensor] = {}
        self._now = TEACHER

    @torch.no_grad()
    def use(self, name: str) -> None:
        """Put the LoRAs of that name in force, or with "teacher" none."""
        if name == self._now:
            return
        for key, value in self._plain.items():
            self._network.get_parameter(key).data = value
        self._plain.clear()
        for updates in self._updates[name]:
            for key, update in updates.items():
                parameter = self._network.get_parameter(key)
                self._plain.setdefault(key, parameter.data)
                change = delta(update.to(parameter.device), parameter.shape)
                parameter.data = (parameter.data.float() + change).to(parameter.dtype)
        self._now = name
