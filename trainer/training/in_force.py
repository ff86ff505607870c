"""The settings in force: those of the run, with the memory fallbacks that it has taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import nn

from ...app.config.distill_config import DistillConfig
from ...app.config.memory_fallback import Fallback
from ...app.runs.directory import RunDirectory
from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import Schedule
from ..memory.fit import CHANGING, write_fallbacks
from ..memory.packed_base import offload_base, quantise_base
from ..method.objective import Grids, Objective
from .optimizers import AdapterOptimizer


@dataclass
class SettingsInForce:
    """The one owner of the settings; an attempt at an update asks for them anew.

    Attributes:
        config: the run's settings with the fallbacks taken.
        teacher_guidance: the teacher's guidance scale, whoever stated it.
        run: where fallbacks are noted, so that a resume goes on with them; None takes none.
        since: the update from which on a fallback is in force, by its setting.
    """

    config: DistillConfig
    teacher_guidance: float
    run: RunDirectory | None = None
    since: dict[str, int] = field(default_factory=dict)

    def objective(self) -> Objective:
        """What the student's updates optimise."""
        config = self.config
        return Objective(
            teacher_guidance=Guidance(self.teacher_guidance, config.guidance_rescale),
            diversity_weight=config.diversity_weight,
            num_anchored_steps=config.num_anchored_steps,
            anchor_target=cast(Literal["chord", "denoised"], config.anchor_target),
            supervision=cast(Literal["random", "last", "all"], config.gradient_steps),
            variant=cast(Literal["dp_dmd", "dmd", "no_detach", "detach_only"], config.objective),
        )

    def grids(self, schedule: Schedule) -> Grids:
        """The noise levels of the run, on the CPU."""
        config = self.config
        return Grids.of(
            schedule,
            config.num_steps,
            config.effective_teacher_steps,
            config.effective_anchor_step,
            config.num_anchored_steps,
        )

    def take(self, fallback: Fallback, step: int) -> None:
        """Change the settings from student update `step` on, and note it in the run."""
        assert self.run is not None
        self.config = fallback.taken(self.config).validate()
        self.since.setdefault(fallback.name, step)
        write_fallbacks(self.run, self.config, self.since)

    def note(self) -> str:
        """What was changed on the way and changes what is learned, in words; "" for nothing."""
        parts = [
            f"{name} {getattr(self.config, name)} from update {step} on"
            for name, step in self.since.items()
            if name in CHANGING
        ]
        return f"To save memory: {', '.join(parts)}." if parts else ""


def apply(
    fallback: Fallback, network: nn.Module, optimizers: Mapping[str, AdapterOptimizer]
) -> None:
    """Let the network and the optimizers follow a fallback; the rest reads the settings."""
    if fallback.name == "gradient_checkpointing":
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    elif fallback.name == "offload_optimizer":
        for optimizer in optimizers.values():
            optimizer.offload()
    elif fallback.name == "base_weights":
        quantise_base(network, str(fallback.value))
    elif fallback.name == "offload_base":
        offload_base(network)
