"""Settings that save memory, in the order in which a run falls back on them.

What changes nothing but the time comes first, the cheapest before the dearer, and what changes the
teacher or the objective after that. Offloading the network is last although it changes nothing: it
multiplies the time of a run, and needs memory that the computer may not have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .distill_config import DistillConfig

Value = bool | int | str


@dataclass(frozen=True)
class Fallback:
    """One setting that saves memory.

    Attributes:
        words: what it does and what it costs.
        eases_step: whether it leaves more memory for an optimizer's step, too.
    """

    name: str
    value: Value
    words: str
    eases_step: bool = False

    @property
    def option(self) -> str:
        """The setting as it is given on the command line."""
        value = "" if self.value is True else f" {self.value}"
        return f"--{self.name.replace('_', '-')}{value}"

    def taken(self, config: DistillConfig) -> DistillConfig:
        """Settings with this fallback taken."""
        changed: dict[str, Any] = {self.name: self.value}
        return replace(config, **changed)


def fallbacks_left(config: DistillConfig, processes: int = 1) -> list[Fallback]:
    """The next fallback of every kind that these settings have left, in their order.

    Args:
        processes: of the run; images are those of the one with the largest share of the batch.
    """
    found = []
    share = -(-config.batch_size // processes)
    size = min(config.micro_batch_size or share, share)
    if size > 1:
        half = (size + 1) // 2
        words = f"{half} of {share} images at a time; the gradients stay the same"
        found.append(Fallback("micro_batch_size", half, words))
    if not config.gradient_checkpointing:
        words = "passes with gradients take about a third longer"
        found.append(Fallback("gradient_checkpointing", True, words))
    if not config.offload_optimizer:
        words = "Adam's moments wait in the computer's memory between steps; the same result"
        found.append(Fallback("offload_optimizer", True, words, eases_step=True))
    if config.base_weights == "keep":
        words = "the frozen network is stored in 8 bit; this changes the teacher a little"
        found.append(Fallback("base_weights", "int8", words, eases_step=True))
    if config.gradient_steps == "all":
        words = (
            "one random student step is supervised in place of all; this changes what is learned"
        )
        found.append(Fallback("gradient_steps", "random", words))
    if not config.offload_base:
        words = "the frozen network waits in the computer's memory; the same result, but slow"
        found.append(Fallback("offload_base", True, words, eases_step=True))
    return found
