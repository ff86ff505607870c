"""A run with its model, prompts, roles and trainer in memory, and its result as a LoRA file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...app.config.request import DistillRequest
from ...app.runs.directory import RunDirectory
from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import FlowSchedule
from ...core.families import Detection, family
from ...core.lora.file import NewLora, write_lora
from ...core.lora.math import LoraPair
from ...core.lora.metadata import TrainingFacts, training_metadata
from ...core.recipe.recipe import Anchor, MergedLora, Recipe
from ..device import dtype_name
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.teacher_loras import IncludedLoras
from ..method.objective import EVERYWHERE, Grids
from ..model.conditioning import Conditioning
from ..model.network import NetworkCall
from ..model.roles import AdapterRoles
from ..text.cache import EncodedPrompts
from .trainer import Trainer

SOFTWARE = f"DP-DMD Studio {__version__}"


@dataclass(frozen=True)
class TeacherFacts:
    """Which checkpoint was distilled, with which LoRAs merged, and under which guidance."""

    name: str
    sha256: str
    detection: Detection
    guidance: Guidance
    resolutions: tuple[tuple[int, int], ...]
    merged_loras: tuple[MergedLora, ...] = ()


@dataclass
class Session:
    """A run with its model, prompts, roles and trainer in memory."""

    run: RunDirectory
    request: DistillRequest
    checkpoint: LoadedCheckpoint
    trainer: Trainer
    negative: Conditioning
    teacher: TeacherFacts
    encoded: EncodedPrompts
    latent_shapes: list[tuple[int, int, int]]
    included: IncludedLoras | None = None

    @property
    def call(self) -> NetworkCall:
        """The denoiser, in whichever role it was last used."""
        return self.trainer.network.call

    @property
    def roles(self) -> AdapterRoles:
        """The denoiser's roles and their adapters."""
        return self.trainer.roles

    @property
    def config(self) -> DistillConfig:
        """The run's settings, with the memory fallbacks that it has taken."""
        return self.trainer.config

    def recipe(self) -> Recipe:
        """The sampling contract of this run's student."""
        return _recipe(self.config, self.teacher, self.call.prediction, self.trainer.grids)

    def write_lora(
        self,
        path: Path,
        *,
        overwrite: bool,
        weights: dict[str, Tensor] | None = None,
        step: int | None = None,
    ) -> Path:
        """Write the student as it is now, or an earlier one with its number of updates."""
        pairs = _student_pairs(self.trainer.student_weights() if weights is None else weights)
        if self.included is not None:
            pairs = self.included.beside(pairs)
        updates = self.trainer.step if step is None else step
        metadata = training_metadata(self._training_facts(path.stem, updates))
        checkpoint = self.checkpoint
        student = NewLora(checkpoint.family, checkpoint.config, pairs, self.recipe(), metadata)
        file_format = self.request.file_format
        return write_lora(path, student, format=file_format, overwrite=overwrite)  # type: ignore[arg-type]

    def _training_facts(self, title: str, num_updates: int) -> TrainingFacts:
        """What the file of the student after so many updates says of its run."""
        config = self.config
        about = f"{config.num_steps}-step student of {self.teacher.name}, {SOFTWARE}."
        return TrainingFacts(
            title=title,
            description=" ".join(filter(None, (about, self.trainer.settings.note()))),
            num_updates=num_updates,
            seed=config.seed,
            learning_rate=config.student_lr,
            optimizer="AdamW8bit" if config.optimizer == "adamw8bit" else "AdamW",
            lr_scheduler="cosine",
            precision=dtype_name(next(self.call.network.parameters()).dtype),
            batch_size=config.batch_size,
            started_at=self.request.created_at,
            finished_at=max(self.request.created_at, time.time()),  # whatever a clock did
            settings=config.to_file(),
        )

    def load_student(self, weights: dict[str, Tensor]) -> None:
        """Put weights (such as the moving average) in the student's place."""
        self.roles.load_state("student", weights)


def _recipe(config: DistillConfig, teacher: TeacherFacts, prediction: str, grids: Grids) -> Recipe:
    """The sampling contract of a student trained with these settings."""
    anchored = config.objective in ("dp_dmd", "no_detach")
    step = config.effective_anchor_step
    interval = (config.real_guidance_low, config.real_guidance_high)
    return Recipe(
        family=teacher.detection.family,
        prediction=prediction,
        num_steps=config.num_steps,
        sigmas=tuple(grids.student.sigmas.tolist()),
        timesteps=tuple(grids.student.timesteps[:-1].tolist()),
        teacher_guidance_scale=teacher.guidance.scale,
        teacher_negative=None if config.zero_negative else config.teacher_negative,
        guidance_rescale=teacher.guidance.rescale,
        real_guidance_scale=config.real_guidance or None,
        real_guidance_interval=None if interval == EVERYWHERE else interval,
        clip_skip=config.clip_skip if family(teacher.detection.family).text.clip_skip else None,
        resolutions=teacher.resolutions,
        shift=grids.schedule.shift if isinstance(grids.schedule, FlowSchedule) else None,
        zero_terminal_snr=teacher.detection.zero_terminal_snr,
        merged_loras=teacher.merged_loras,
        teacher_name=teacher.name,
        teacher_sha256=teacher.sha256,
        anchor=Anchor(
            sigma=float(grids.teacher.sigmas[step]),
            timestep=float(grids.teacher.timesteps[step]),
            steps=step,
            grid=config.effective_teacher_steps,
        )
        if anchored
        else None,
        num_anchored_steps=config.num_anchored_steps,
        objective=config.objective,
        generator=SOFTWARE,
    )


def _student_pairs(weights: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """The student's adapter as pairs by module name.

    Args:
        weights: adapter tensors by name, ending in .lora_A and .lora_B (`AdapterRoles.state`).
    """
    modules = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    return {m: LoraPair(weights[f"{m}.lora_A"], weights[f"{m}.lora_B"]) for m in modules}
