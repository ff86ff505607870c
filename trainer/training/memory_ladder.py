"""What a run does when the device has too little memory: one rung down, said and remembered.

What changes nothing but the time comes first, the cheapest before the dearer, and what changes the
teacher or the objective after that. Offloading the network is last although it changes nothing: it
multiplies the time of a run, and needs memory that the computer may not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ...app.config.distill_config import DistillConfig
from ...app.runs.directory import RunDirectory
from ...core.errors import RunError
from ..distributed import joined
from ..memory.packed_base import offload_base, quantise_base
from ..method.distiller import Distiller

if TYPE_CHECKING:
    from .optimizers import AdapterOptimizer

FILE = "memory.json"
NAMES = (
    "gradient_checkpointing", "micro_batch_size", "offload_optimizer", "base_weights",
    "gradient_steps", "offload_base",
)  # fmt: skip
CHANGING = ("base_weights", "gradient_steps")
"""Rungs that change what is learned."""
Value = bool | int | str


@dataclass(frozen=True)
class Rung:
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
        """Settings with this rung taken."""
        changed: dict[str, Any] = {self.name: self.value}
        return replace(config, **changed)


def rungs_below(config: DistillConfig) -> list[Rung]:
    """The next rung of every kind that these settings have left, in their order.

    Pictures are those of the process with the largest share of the batch.
    """
    found = []
    if not config.gradient_checkpointing:
        found.append(
            Rung("gradient_checkpointing", True, "passes with gradients take about a third longer")
        )
    share = -(-config.batch_size // joined().size)
    size = min(config.micro_batch_size or share, share)
    if size > 1:
        half = (size + 1) // 2
        words = f"{half} of {share} pictures at a time; the gradients stay the same"
        found.append(Rung("micro_batch_size", half, words))
    if not config.offload_optimizer:
        words = "Adam's moments wait in the computer's memory between steps; the same result"
        found.append(Rung("offload_optimizer", True, words, eases_step=True))
    if config.base_weights == "keep":
        words = "the frozen network is stored in 8 bit; this changes the teacher a little"
        found.append(Rung("base_weights", "int8", words, eases_step=True))
    if config.gradient_steps == "all":
        words = (
            "one random student step is supervised in place of all; this changes what is learned"
        )
        found.append(Rung("gradient_steps", "random", words))
    if not config.offload_base:
        words = "the frozen network waits in the computer's memory; the same result, but slow"
        found.append(Rung("offload_base", True, words, eases_step=True))
    return found


@dataclass
class MemoryLadder:
    """The rungs that a run has left, for its rest: its folder says which, after a resume as well.

    Args:
        distiller: whose settings change on the way down.
        network: the denoiser.
        optimizers: of both adapters.
        since: the update from which on a rung was in force, by its setting.
    """

    distiller: Distiller
    network: nn.Module
    optimizers: Mapping[str, AdapterOptimizer]
    run: RunDirectory
    report: Callable[[str], None]
    since: dict[str, int] = field(default_factory=dict)

    def step_down(self, step: int, *, for_step: bool = False) -> bool:
        """Take the next rung; False if there is none.

        Args:
            step: the student update at hand.
            for_step: whether memory ran out in an optimizer's step, which only some rungs ease.
        """
        below = rungs_below(self.distiller.config)
        rung = next((r for r in below if r.eases_step or not for_step), None)
        if rung is None:
            return False
        self._take(rung)
        self.since.setdefault(rung.name, step)
        note_rungs(self.run, self.distiller.config, self.since)
        self.report(
            f"The device ran out of memory in update {step}. From here on {rung.option}: "
            f"{rung.words}. The interrupted pass is done again; nothing is skipped."
        )
        return True

    def _take(self, rung: Rung) -> None:
        self.distiller.config = rung.taken(self.distiller.config).validate()
        if rung.name == "gradient_checkpointing":
            self.network.enable_gradient_checkpointing()  # type: ignore[operator]
        elif rung.name == "micro_batch_size":
            self.distiller.micro_batch_size = rung.value  # type: ignore[attr-defined]
        elif rung.name == "offload_optimizer":
            for optimizer in self.optimizers.values():
                optimizer.offload()
        elif rung.name == "base_weights":
            quantise_base(self.network, str(rung.value))
        elif rung.name == "offload_base":
            offload_base(self.network)

    def note(self) -> str:
        """What was changed on the way and changes what is learned, in words; "" for nothing."""
        config = self.distiller.config
        parts = [
            f"{name} {getattr(config, name)} from update {step} on"
            for name, step in self.since.items()
            if name in CHANGING
        ]
        return f"To save memory: {', '.join(parts)}." if parts else ""


def note_rungs(run: RunDirectory, config: DistillConfig, since: Mapping[str, int]) -> None:
    """Write into the run on which rungs it is."""
    rungs = {name: getattr(config, name) for name in NAMES}
    run.write_json(FILE, rungs | {"since": dict(since)})


def noted_rungs(
    run: RunDirectory, config: DistillConfig, report: Callable[[str], None]
) -> tuple[DistillConfig, dict[str, int]]:
    """(settings on the rungs that the run had come down to, the update each is in force since).

    Raises:
        RunError: the file that says so is damaged.
    """
    if not (run.path / FILE).exists():
        return config, {}
    values = run.read_json(FILE)
    for name in NAMES:
        current = getattr(config, name)
        value: Any = values.get(name, current)  # a rung that came later is not in older files
        if type(value) is not type(current):
            raise RunError(
                f"{run.path / FILE} is damaged: {name} is {value!r}, expected a value "
                f"like {current!r}. Delete that file to begin with the run's own settings."
            )
        if value != current:
            config = replace(config, **{name: value}).validate()
            report(f"This run was short of memory before: {name} is {value} now.")
    since = values.get("since", {})
    known = since if isinstance(since, dict) else {}
    return config, {k: v for k, v in known.items() if k in NAMES and type(v) is int}
