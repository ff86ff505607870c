"""A run with its model, prompts, roles and trainer in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...app.config.distill_config import DistillConfig
from ...app.config.request import DistillRequest
from ...app.runs.directory import RunDirectory
from ...core.lora.file import NewLora, write_lora
from ...core.lora.metadata import TrainingFacts, training_metadata
from ...core.recipe.recipe import Recipe
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.teacher_loras import IncludedLoras
from ..model.conditioning import Conditioning
from ..model.network import NetworkCall
from ..model.roles import AdapterRoles
from ..text.cache import EncodedPrompts
from .student_file import SOFTWARE, TeacherFacts, make_recipe, student_pairs
from .trainer import Trainer


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
        return make_recipe(self.config, self.teacher, self.call.prediction, self.trainer.grids)

    def write_lora(
        self,
        path: Path,
        *,
        overwrite: bool,
        weights: dict[str, Tensor] | None = None,
        step: int | None = None,
    ) -> Path:
        """Write the student as it is now, or an earlier one with its number of updates."""
        pairs = student_pairs(self.trainer.student_weights() if weights is None else weights)
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
            precision=str(next(self.call.network.parameters()).dtype).removeprefix("torch."),
            batch_size=config.batch_size,
            started_at=self.request.created_at,
            finished_at=time.time(),
            settings=config.to_dict(),
        )

    def load_student(self, weights: dict[str, Tensor]) -> None:
        """Put weights (such as the moving average) in the student's place."""
        self.roles.load_state("student", weights)
