"""Preview sheets of a run: fixed prompts and seeds, teacher and student at their own settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...app.report.images import image_grid
from ...app.runs.directory import RunDirectory
from ...core.files import atomic_write
from ..device import is_out_of_memory
from ..memory.portions import Portions
from .evaluate import ArmSetting, EvaluationSet, Stage
from .run_evaluation import STUDENT, TEACHER, session_sampler, student_kept, teacher_levels
from .setbacks import setback

if TYPE_CHECKING:
    from ..training.session import Session

PREVIEW_PROMPTS = 3
EARLY = 5
"""Updates after which a first student is drawn, long before the first of the regular ones."""
PREVIEW_SEEDS = (1_000_001, 1_000_002, 1_000_003)
log = logging.getLogger("dpdmd_studio.evaluation")


class Previews:
    """Draws previews/teacher.png once, and previews/step-*.png as the student learns."""

    def __init__(self, run: RunDirectory, session: Session) -> None:
        self._run, self._session = run, session
        self._portions = Portions(session.call.device, session.config.batch_size)
        prompts = list(session.encoded)
        shown = [text for text in prompts if text != session.config.teacher_negative]
        self._prompts = (shown or prompts)[:PREVIEW_PROMPTS]

    @property
    def wanted(self) -> bool:
        """Whether the run asks for previews at all."""
        return self._session.config.preview_every > 0

    def due(self, step: int) -> bool:
        """Whether the student is drawn after this update."""
        config = self._session.config
        if not self.wanted:
            return False
        early = step == EARLY and config.preview_every > EARLY
        return early or step % config.preview_every == 0 or step == config.steps

    def teacher(self) -> None:
        """The teacher at its own guided steps; drawn once per run."""
        if not self.wanted or (self._run.previews / "teacher.png").exists():
            return
        log.info("Drawing the teacher's preview")
        session = self._session
        guidance = session.teacher.guidance.scale
        stage = Stage(weights=TEACHER, sigmas=teacher_levels(session), guidance_scale=guidance)
        self._draw(stage, "teacher.png")

    def student(self, step: int) -> None:
        """The student as it would be saved after update `step`."""
        stage = Stage(weights=STUDENT, sigmas=self._session.trainer.grids.student.sigmas)
        with student_kept(self._session):
            self._draw(stage, f"step-{step:08d}.png")

    def _draw(self, stage: Stage, name: str) -> None:
        """Draw one sheet; what stands in the way costs the sheet, not the run."""
        try:
            self._draw_sheet(stage, name)
        except Exception as error:
            if not is_out_of_memory(error):
                log.warning("previews/%s is left out. %s", name, setback(error))
                return
            log.info(
                "previews/%s is left out: the device has too little memory to draw it. "
                "--preview-every 0 makes no previews.",
                name,
            )

    def _draw_sheet(self, stage: Stage, name: str) -> None:
        sampler = session_sampler(self._session, portions=self._portions)
        setting = ArmSetting(name=name, note="", stages=(stage,))
        rows = []
        for text in self._prompts:
            material = EvaluationSet((text,), (self._session.encoded[text],), PREVIEW_SEEDS)
            rows.append((text[:100], sampler.draw(setting, material)[0]))
        with atomic_write.atomic_path(self._run.previews / name) as temporary:
            image_grid(rows).save(temporary, format="PNG")
