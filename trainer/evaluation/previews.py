"""Preview sheets of a run: fixed prompts and seeds, teacher and student at their own settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...app.report.grid import picture_grid
from ...app.runs.directory import RunDirectory
from ...core.diffusion.guidance import Guidance
from ...core.diffusion.schedule import Levels
from ...core.files import atomic_write
from ..device import is_out_of_memory, release_memory
from ..loading.decoding import decode
from ..model.conditioning import Conditioning, PromptPair
from .sampling import Trajectory, sample_latents

if TYPE_CHECKING:
    from ..training.session import Session

PREVIEW_PROMPTS = 3
PREVIEW_SEEDS = (1_000_001, 1_000_002, 1_000_003)
log = logging.getLogger("dpdmd_studio.evaluation")


class Previews:
    """Draws previews/teacher.png once, and previews/step-*.png as the student learns."""

    def __init__(self, run: RunDirectory, session: Session) -> None:
        self._run, self._session = run, session
        prompts = list(session.encoded)
        shown = [text for text in prompts if text != session.config.teacher_negative]
        self._prompts = (shown or prompts)[:PREVIEW_PROMPTS]

    @property
    def wanted(self) -> bool:
        """Whether the run asks for previews at all."""
        return self._session.config.preview_every > 0

    def teacher(self) -> None:
        """The teacher at its own guided steps; drawn once per run."""
        path = self._run.previews / "teacher.png"
        if not self.wanted or path.exists():
            return
        log.info("Drawing the teacher's preview")
        session = self._session
        levels = session.trainer.grids.teacher
        self._draw("teacher", levels, session.teacher.guidance_scale, path.name)

    def student(self, step: int) -> None:
        """The student as it would be saved after update `step`."""
        session = self._session
        levels, name = session.trainer.grids.student, f"step-{step:08d}.png"
        if session.trainer.average is None:
            self._draw("student", levels, 1.0, name)
            return
        kept = session.roles.state("student")
        try:
            session.load_student(session.trainer.average)
            self._draw("student", levels, 1.0, name)
        finally:
            session.load_student(kept)

    def _draw(self, role: str, levels: Levels, guidance_scale: float, name: str) -> None:
        """Draw one sheet; a device too small for it costs the sheet, not the run.

        What failed is done again with memory given back, one image at a time.
        """
        for size in (self._session.config.batch_size, 1):
            try:
                self._draw_sheet(role, levels, guidance_scale, name, size)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            release_memory(self._session.call.device)
        log.info(
            "previews/%s is left out: the device has too little memory to draw it. "
            "--preview-every 0 makes no previews.",
            name,
        )

    def _draw_sheet(
        self, role: str, levels: Levels, guidance_scale: float, name: str, size: int
    ) -> None:
        self._session.roles.use(role)
        rows = []
        for text in self._prompts:
            latents = self._latents(self._session.encoded[text], levels, guidance_scale, size)
            images = list(decode(self._session.checkpoint, latents))
            rows.append((text[:100], images))
        with atomic_write.atomic_path(self._run.previews / name) as temporary:
            picture_grid(rows).save(temporary, format="PNG")

    def _latents(
        self, prompt: Conditioning, levels: Levels, guidance_scale: float, size: int
    ) -> Tensor:
        """One latent per seed, `size` at a time."""
        session = self._session
        guidance = Guidance(guidance_scale, session.config.guidance_rescale)
        trajectory = Trajectory(levels.sigmas, guidance)
        parts = [PREVIEW_SEEDS[i : i + size] for i in range(0, len(PREVIEW_SEEDS), size)]
        latents = [
            sample_latents(
                session.call,
                PromptPair.of(prompt.repeat(len(seeds)), session.negative),
                seeds,
                session.latent_shapes[0],
                trajectory,
            )
            for seeds in parts
        ]
        return torch.cat(latents)
