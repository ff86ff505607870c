"""The result of a run as a LoRA file: weights, recipe, and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...core.diffusion.schedule import FlowSchedule, Levels, Schedule
from ...core.families import Config, Detection, Family, family
from ...core.lora.file import write_lora
from ...core.lora.math import LoraPair
from ...core.lora.metadata import TrainingFacts, training_metadata
from ...core.recipe.recipe import Anchor, MergedLora, Recipe
from ..loading.teacher_loras import IncludedLoras

SOFTWARE = f"DP-DMD Studio {__version__}"


@dataclass(frozen=True)
class TeacherFacts:
    """Which checkpoint was distilled, with which LoRAs merged, and under which guidance."""

    name: str
    sha256: str
    detection: Detection
    guidance_scale: float
    resolutions: tuple[tuple[int, int], ...]
    merged_loras: tuple[MergedLora, ...] = ()


def make_recipe(
    config: DistillConfig,
    teacher: TeacherFacts,
    schedule: Schedule,
    prediction: str,
    levels: Levels,
    teacher_levels: Levels,
) -> Recipe:
    """The sampling contract of a student trained with these settings."""
    anchored = config.objective in ("dp_dmd", "no_detach")
    step = config.effective_anchor_step
    return Recipe(
        family=teacher.detection.family,
        prediction=prediction,
        num_steps=config.num_steps,
        sigmas=tuple(levels.sigmas.tolist()),
        timesteps=tuple(levels.timesteps[:-1].tolist()),
        teacher_guidance_scale=teacher.guidance_scale,
        teacher_negative=None if config.zero_negative else config.teacher_negative,
        guidance_rescale=config.guidance_rescale,
        clip_skip=config.clip_skip if family(teacher.detection.family).text.clip_skip else None,
        resolutions=teacher.resolutions,
        shift=schedule.shift if isinstance(schedule, FlowSchedule) else None,
        zero_terminal_snr=teacher.detection.zero_terminal_snr,
        merged_loras=teacher.merged_loras,
        teacher_name=teacher.name,
        teacher_sha256=teacher.sha256,
        anchor=Anchor(
            sigma=float(teacher_levels.sigmas[step]),
            timestep=float(teacher_levels.timesteps[step]),
            steps=step,
            grid=config.effective_teacher_steps,
        )
        if anchored
        else None,
        num_anchored_steps=config.num_anchored_steps,
        objective=config.objective,
        generator=SOFTWARE,
    )


def write_student(
    path: Path,
    family: Family,
    network_config: Config,
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    config: DistillConfig,
    *,
    num_updates: int,
    started_at: float,
    finished_at: float,
    precision: str,
    included: IncludedLoras | None = None,
    note: str = "",
    file_format: str = "kohya",
    overwrite: bool = False,
) -> Path:
    """Write the student's adapter as a LoRA that hosts load at strength 1.0; returns its path.

    Args:
        weights: adapter tensors by name, ending in .lora_A and .lora_B (`AdapterRoles.state`).
        num_updates: finished student updates.
        started_at, finished_at: Unix times.
        included: LoRAs of the teacher that the file shall hold besides the student.
        note: what else to say of its training.
        file_format: "kohya" for hosts, "peft" for diffusers.
    """
    modules = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    pairs = {m: LoraPair(weights[f"{m}.lora_A"], weights[f"{m}.lora_B"]) for m in modules}
    if included is not None:
        pairs = included.beside(pairs)
    about = f"{config.num_steps}-step student of {recipe.teacher_name}, {SOFTWARE}."
    facts = TrainingFacts(
        title=Path(path).stem,
        description=" ".join(filter(None, (about, note))),
        num_updates=num_updates,
        seed=config.seed,
        learning_rate=config.student_lr,
        optimizer="AdamW8bit" if config.optimizer == "adamw8bit" else "AdamW",
        lr_scheduler="cosine",
        precision=precision,
        batch_size=config.batch_size,
        started_at=started_at,
        finished_at=finished_at,
        settings=config.to_dict(),
    )
    return write_lora(
        path,
        family,
        network_config,
        pairs,
        recipe=recipe,
        metadata=training_metadata(facts),
        format=file_format,  # type: ignore[arg-type]
        overwrite=overwrite,
    )
