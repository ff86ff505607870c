"""The checks and choices of a new run that need the engine, for runs made without it."""

from __future__ import annotations

import dataclasses

from ...app.config.request import DistillRequest
from ...app.prompts.expansion import set_aside
from ...app.runs.directory import (
    EVALUATION_PROMPTS,
    GIVEN_PROMPTS,
    PROMPTS,
    UNPREPARED,
    RunDirectory,
)
from ...core.files import atomic_write
from ..loading.model_files import text_encoder_files
from ..loading.teacher_loras import check_teacher_loras


def prepare(run: RunDirectory) -> None:
    """Check the teacher LoRAs and hold prompts out, unless that was done; safe to be cut short.

    Raises:
        LoraError: a LoRA cannot be merged into this model, or not be included.
        PromptError: alternatives in a prompt cannot be read.
    """
    if not (run.path / UNPREPARED).exists():
        return
    settings = run.settings()
    request = DistillRequest.from_dict(settings)
    # hashes of an earlier run, which this one is a copy of, bind this one to nothing
    loras = tuple(dataclasses.replace(lora, sha256="") for lora in request.teacher_loras)
    request = dataclasses.replace(request, teacher_loras=loras)
    request = check_teacher_loras(request, text_encoder_files(request.model))
    if (run.path / GIVEN_PROMPTS).exists():
        config = request.config
        given = run.given_prompts()
        training, measured = set_aside(given, config.evaluation_prompts, config.seed)
        for name, texts in ((EVALUATION_PROMPTS, measured), (PROMPTS, training)):
            if texts:
                atomic_write.write_text(run.path / name, "\n".join(texts) + "\n")
    run.write_json("settings.json", settings | request.to_dict())
    (run.path / GIVEN_PROMPTS).unlink(missing_ok=True)
    (run.path / UNPREPARED).unlink(missing_ok=True)
