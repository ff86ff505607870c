"""What a run does when the device runs out of memory: one rung down, said and remembered.

The rungs, cheapest first: gradient checkpointing; half the pictures per pass, down to one; one
random supervised step in place of all. Only the last changes what is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ...core.errors import RunError
from ..run_directory import RunDirectory
from .distiller import Distiller

FILE = "memory.json"
NAMES = ("gradient_checkpointing", "micro_batch_size", "gradient_steps")
Value = bool | int | str


class MemoryLadder:
    """The rungs that a run has left.

    They hold for the rest of the run, after a resume as well: the run's folder says which.
    """

    def __init__(
        self,
        distiller: Distiller,
        network: nn.Module,
        run: RunDirectory,
        report: Callable[[str], None],
    ) -> None:
        """Args:
        distiller: whose settings change on the way down.
        network: the denoiser.
        """
        self._distiller, self._network, self._run, self._report = distiller, network, run, report

    def step_down(self, step: int) -> bool:
        """Take the next rung; False if there is none.

        Args:
            step: the student update at hand, for the message.
        """
        found = self._next()
        if found is None:
            return False
        name, value, words = found
        self._apply(name, value)
        config = self._distiller.config
        self._run.write_json(FILE, {key: getattr(config, key) for key in NAMES})
        self._report(
            f"The device ran out of memory in update {step}. From here on: {words} "
            f"(--{name.replace('_', '-')}). The interrupted pass is done again; nothing is skipped."
        )
        return True

    def restore(self) -> None:
        """Begin on the rung that this run had come down to.

        Raises:
            RunError: the file that says so is damaged.
        """
        if not (self._run.path / FILE).exists():
            return
        values = self._run.read_json(FILE)
        for name in NAMES:
            current = getattr(self._distiller.config, name)
            value: Any = values.get(name)
            if type(value) is not type(current):
                raise RunError(
                    f"{self._run.path / FILE} is damaged: {name} is {value!r}, expected a value "
                    f"like {current!r}. Delete that file to begin with the run's own settings."
                )
            if value != current:
                self._apply(name, value)
                self._report(f"This run ran out of memory before: {name} is {value} now.")

    def _next(self) -> tuple[str, Value, str] | None:
        """(setting, value, words) of the next rung."""
        config = self._distiller.config
        if not config.gradient_checkpointing:
            return "gradient_checkpointing", True, (
                "gradient checkpointing is on; updates take about a third longer"
            )  # fmt: skip
        size = min(config.micro_batch_size or config.batch_size, config.batch_size)
        if size > 1:
            half = (size + 1) // 2
            return "micro_batch_size", half, (
                f"{half} of {config.batch_size} pictures go through the network at a time; the "
                "gradients stay the same"
            )  # fmt: skip
        if config.gradient_steps == "all":
            return "gradient_steps", "random", (
                "one random student step is supervised in place of all; this changes what is "
                "learned"
            )  # fmt: skip
        return None

    def _apply(self, name: str, value: Value) -> None:
        changed: dict[str, Any] = {name: value}
        self._distiller.config = replace(self._distiller.config, **changed).validate()
        if name == "gradient_checkpointing" and value:
            self._network.enable_gradient_checkpointing()  # type: ignore[operator]
        if name == "micro_batch_size":
            self._distiller.micro_batch_size = value  # type: ignore[attr-defined]
