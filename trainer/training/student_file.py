"""The result of a run as a LoRA file: weights, recipe, and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...core.diffusion.schedule import FlowSchedule
from ...core.families import Detection, family
from ...core.lora.math import LoraPair
from ...core.recipe.recipe import Anchor, MergedLora, Recipe
from ..method.objective import Grids

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
    config: DistillConfig, teacher: TeacherFacts, prediction: str, grids: Grids
) -> Recipe:
    """The sampling contract of a student trained with these settings."""
    anchored = config.objective in ("dp_dmd", "no_detach")
    step = config.effective_anchor_step
    return Recipe(
        family=teacher.detection.family,
        prediction=prediction,
        num_steps=config.num_steps,
        sigmas=tuple(grids.student.sigmas.tolist()),
        timesteps=tuple(grids.student.timesteps[:-1].tolist()),
        teacher_guidance_scale=teacher.guidance_scale,
        teacher_negative=None if config.zero_negative else config.teacher_negative,
        guidance_rescale=config.guidance_rescale,
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


def student_pairs(weights: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """The student's adapter as pairs by module name.

    Args:
        weights: adapter tensors by name, ending in .lora_A and .lora_B (`AdapterRoles.state`).
    """
    modules = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    return {m: LoraPair(weights[f"{m}.lora_A"], weights[f"{m}.lora_B"]) for m in modules}
