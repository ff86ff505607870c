"""The settings in force: those of the run, with the memory fallbacks that it has taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

RENOISE_FROM = 0.5
"""Where annealed re-noising begins, as a share of the range of its levels."""


@dataclass
class SettingsInForce:
    """The one owner of the settings; an attempt at an update asks for them anew.

    Attributes:
        config: the run's settings with the fallbacks taken.
        teacher_guidance: the teacher's guidance, whoever stated it.
        run: where fallbacks are noted, so that a resume goes on with them; None takes none.
        since: the update from which on a fallback is in force, by its setting.
    """

    config: DistillConfig
    teacher_guidance: Guidance
    run: RunDirectory | None = None
    since: dict[str, int] = field(default_factory=dict)

    def objective(self, step: int | None = None) -> Objective:
        """What the student's updates optimise.

        Args:
            step: which update it is, from 1; None is a late one.
        """
        config, teacher = self._anchored(), self.teacher_guidance
        return Objective(
            teacher_guidance=teacher,
            real_guidance=replace(teacher, scale=config.real_guidance or teacher.scale),
            guidance_interval=(config.real_guidance_low, config.real_guidance_high),
            renoise_from=_renoise_from(config.renoise_anneal_steps, step),
            diversity_weight=config.diversity_weight,
            num_anchored_steps=config.num_anchored_steps,
            anchor_target=cast(Literal["chord", "denoised"], config.anchor_target),
            supervision=cast(Literal["random", "last", "all"], config.gradient_steps),
            variant=cast(Literal["dp_dmd", "dmd", "no_detach", "detach_only"], config.objective),
        )

    def grids(self, schedule: Schedule) -> Grids:
        """The noise levels of the run, on the CPU."""
        config = self._anchored()
        return Grids.of(
            schedule,
            config.num_steps,
            config.effective_teacher_steps,
            config.effective_anchor_step,
            config.num_anchored_steps,
        )

    def _anchored(self) -> DistillConfig:
        """A run's settings say how many steps are anchored; others have one where they do not."""
        return self.config.anchored_for("")

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


def _renoise_from(anneal_steps: int, step: int | None) -> float:
    """The share of the re-noising range that is left out below: from a half straight down to 0."""
    if step is None or step > anneal_steps:
        return 0.0
    return RENOISE_FROM * (1 - (step - 1) / anneal_steps)


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
