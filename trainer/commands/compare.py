"""The `compare` command: a checkpoint and its few-step LoRAs side by side, drawn and measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, tensor

from ...app.config.distill_config import DistillConfig
from ...app.config.resolutions import choose_resolutions
from ...app.library.home import prompt_cache
from ...app.report.data import Arm, ReportData
from ...app.report.report import write_report
from ...core.diffusion.schedule import Levels, few_step_positions, trailing_positions
from ...core.errors import OutputError, SettingsError
from ...core.families import family, identify, stated_settings
from ...core.lora.file import LoraFile, check_family, read_lora
from ...core.recipe.merged_loras import merged_lora_notes
from ..device import choose_device, choose_dtype, is_out_of_memory
from ..evaluation.comparison import CompareRequest, Comparison, measures_by_arm
from ..evaluation.evaluate import (
    ArmSetting,
    EvaluationSet,
    ImageSampler,
    Stage,
    evaluate,
    teacher_arms,
    training_free_arm,
)
from ..evaluation.features import folder_features, layout_features
from ..evaluation.lora_switch import LoraSwitch
from ..evaluation.measures import MeasureSet, feature_measures
from ..loading.checkpoint import LoadedCheckpoint, Overrides, load_checkpoint
from ..loading.lora_merge import WITH_LORA, MergingLora, open_merging
from ..loading.model_files import ZERO_SNR, model_name, text_encoder_files
from ..text.cache import encode_prompts
from ..toys import encoder
from ..toys.counts import shapes_measures
from ..toys.shapes import caption_sample
from .open_session import default_guidance
from .sample import TEACHER_STEPS

DEFAULT_STEPS = 4
SHAPES_PROMPTS, SHOWN_PROMPTS = 40, 8
log = logging.getLogger("dpdmd_studio.commands")


@dataclass(frozen=True)
class Student:
    """A LoRA of the comparison: its name in the report and the grid it is sampled on."""

    name: str
    lora: LoraFile
    strength: float
    sigmas: Tensor
    guidance_scale: float


def compare(request: CompareRequest) -> Comparison:
    """Draw and measure teacher, baselines and LoRAs on the same prompts and seeds; write a report.

    Raises:
        DPDMDError: whatever is wrong with the files or the settings.
    """
    request.check()
    if (request.output / "report.html").exists() and not request.overwrite:
        raise OutputError(
            f"{request.output} holds a report already. Add --overwrite to replace it, or name "
            "another folder with --output."
        )
    try:
        return _compare(request)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SettingsError(
            f"The device ran out of memory ({str(error).splitlines()[0]}). Lower --batch-size or "
            "--resolution."
        ) from error


def _compare(request: CompareRequest) -> Comparison:
    encoder.register()
    facts = stated_settings(Path(request.model.checkpoint))
    prompts = chosen_prompts(request, facts)
    loras = [(read_lora(Path(path)), strength) for path, strength in request.loras]
    styles = [open_merging(Path(path), strength) for path, strength in request.with_loras]
    kind = family(identify(Path(request.model.checkpoint)).family)
    for lora in [*(lora for lora, _ in loras), *(style.file for style in styles)]:
        check_family(lora, kind)  # before gigabytes are loaded
    for lora, _ in loras:
        for note in merged_lora_notes(lora.recipe, [s.present() for s in styles], how=WITH_LORA):
            log.info("%s: %s", lora.path.name, note)
    device = choose_device(request.device)
    measures = feature_measures(
        folder_features(request.features, device) if request.features else layout_features()
    )
    if facts:
        measures = shapes_measures() + measures
    checkpoint = _load(request, loras, styles, device)
    students: list[Student] = []
    for lora, strength in loras:
        taken = [student.name for student in students]
        students.append(_student(request, checkpoint, lora, strength, taken))
    switch = LoraSwitch(checkpoint, {s.name: [(s.lora, s.strength)] for s in students})
    settings = arm_settings(request, checkpoint, students, facts)
    sampler, material = _material(request, checkpoint, students, prompts, switch)
    arms = evaluate(sampler, settings, material, measures)
    shown = _compared(request, checkpoint, students, prompts)
    data = _report_data(shown, arms, prompts, request.seeds, measures)
    page = write_report(request.output, data)
    return Comparison(page, measures_by_arm(arms), measures.labels, measures.units)


def chosen_prompts(request: CompareRequest, facts: dict[str, Any]) -> tuple[str, ...]:
    """The prompts to compare on: those given less those trained on; for shapes held-out captions.

    Raises:
        SettingsError: none are left.
    """
    if not request.prompts and facts:
        return tuple(caption_sample(held_out=True, count=SHAPES_PROMPTS, seed=0))
    trained = {" ".join(text.split()) for text in request.training_prompts}
    kept = [
        text for text in dict.fromkeys(request.prompts) if " ".join(text.split()) not in trained
    ]
    overlap = len(dict.fromkeys(request.prompts)) - len(kept)
    if overlap:
        log.info("%d prompts are among the training prompts and are left out.", overlap)
    if not kept:
        raise SettingsError(
            "No prompts are left to compare on. Give prompts that training did not see: "
            "--prompts FILE."
        )
    return tuple(kept)


def _load(
    request: CompareRequest,
    loras: list[tuple[LoraFile, float]],
    styles: list[MergingLora],
    device: torch.device,
) -> LoadedCheckpoint:
    recipes = [lora.recipe for lora, _ in loras if lora.recipe]
    asked = None if request.prediction == "auto" else request.prediction
    zero_snr = ZERO_SNR[request.zero_terminal_snr]
    if zero_snr is None and asked is None and recipes and recipes[0].prediction == "v":
        zero_snr = recipes[0].zero_terminal_snr
    overrides = Overrides(
        prediction=asked or (recipes[0].prediction if recipes else None),
        zero_terminal_snr=zero_snr,
        text_encoders=text_encoder_files(request.model),
        vae=Path(request.model.vae) if request.model.vae else None,
        loras=styles,
    )
    return load_checkpoint(
        Path(request.model.checkpoint),
        dtype=choose_dtype(request.dtype, device),
        device=device,
        overrides=overrides,
    )


def _student(
    request: CompareRequest,
    checkpoint: LoadedCheckpoint,
    lora: LoraFile,
    strength: float,
    taken: list[str],
) -> Student:
    recipe = lora.recipe
    steps = request.steps or (recipe.num_steps if recipe else DEFAULT_STEPS)
    exact = recipe is not None and recipe.num_steps == steps
    sigmas = (
        tensor(recipe.sigmas)
        if exact and recipe
        else checkpoint.schedule.sigma_at(few_step_positions(steps))
    )
    name = lora.path.stem if strength == 1.0 else f"{lora.path.stem} at {strength:g}"
    name = f"{name}, {steps} steps"
    same = sum(other == name or other.startswith(f"{name} (") for other in taken)
    name += f" ({same + 1})" if same else ""
    return Student(name, lora, strength, sigmas, recipe.guidance_scale if recipe else 1.0)


def arm_settings(
    request: CompareRequest,
    checkpoint: LoadedCheckpoint,
    students: list[Student],
    facts: dict[str, Any],
) -> list[ArmSetting]:
    """Teacher, without guidance on each grid, too; each LoRA with its training-free baseline."""
    grids = [s.lora.recipe.anchor.grid for s in students if s.lora.recipe and s.lora.recipe.anchor]
    steps = request.teacher_steps or facts.get("steps") or (grids or [TEACHER_STEPS])[0]
    own = Levels.at_positions(checkpoint.schedule, trailing_positions(int(steps))).sigmas
    guidance = request.guidance_scale or default_guidance(checkpoint)
    few = [s.sigmas for s in students] or [
        checkpoint.schedule.sigma_at(few_step_positions(request.steps or DEFAULT_STEPS))
    ]
    found: dict[str, ArmSetting] = {}
    for grid in few:
        for arm in teacher_arms(own, grid, guidance):
            found.setdefault(arm.name, arm)
    for student in students:
        if request.baseline:
            name = f"{student.name}, off at step 1"
            arm = training_free_arm(student.name, student.sigmas, name)
            found.setdefault(arm.name, arm)
        stage = Stage(
            weights=student.name, sigmas=student.sigmas, guidance_scale=student.guidance_scale
        )
        note = f"{student.lora.path.name} at strength {student.strength:g}."
        found[student.name] = ArmSetting(name=student.name, note=note, stages=(stage,))
    return list(found.values())


def _material(
    request: CompareRequest,
    checkpoint: LoadedCheckpoint,
    students: list[Student],
    prompts: tuple[str, ...],
    switch: LoraSwitch,
) -> tuple[ImageSampler, EvaluationSet]:
    recipe = next((s.lora.recipe for s in students if s.lora.recipe), None)
    encoded = encode_prompts(
        checkpoint,
        [*prompts, request.negative],
        clip_skip=(recipe.clip_skip if recipe else None) or 1,
        cache_folder=prompt_cache(),
    )
    asked = DistillConfig(resolution=request.resolution)
    size = choose_resolutions(asked, checkpoint.detection)[0]
    if not request.resolution and recipe is not None and recipe.resolutions:
        size = recipe.resolutions[0]
    sampler = ImageSampler(
        checkpoint=checkpoint,
        call=checkpoint.call(),
        use=switch.use,
        negative=encoded[request.negative],
        latent_shape=(checkpoint.detection.latent_channels, size[1] // 8, size[0] // 8),
        batch_size=request.batch_size,
    )
    conditioning = tuple(encoded[prompt] for prompt in prompts)
    return sampler, EvaluationSet(prompts, conditioning, request.seeds)


def _compared(
    request: CompareRequest,
    checkpoint: LoadedCheckpoint,
    students: list[Student],
    prompts: tuple[str, ...],
) -> tuple[str, dict[str, str]]:
    """(subtitle of the report, facts for its head)."""
    facts = {
        "Checkpoint": f"{model_name(checkpoint.path)} ({checkpoint.detection.title})",
        "LoRAs": ", ".join(s.lora.path.name for s in students) or "none",
        "Compared on": f"{len(prompts)} prompts, {len(request.seeds)} seeds each",
    }
    if request.with_loras:
        named = [f"{Path(path).name} at {strength:g}" for path, strength in request.with_loras]
        facts["Together with"] = ", ".join(named)
    return f"{len(students)} LoRAs on {model_name(checkpoint.path)}, with the teacher.", facts


def _report_data(
    compared: tuple[str, dict[str, str]],
    arms: list[Arm],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    measures: MeasureSet,
) -> ReportData:
    subtitle, facts = compared
    shown = [Arm(**{**vars(arm), "pictures": arm.pictures[:SHOWN_PROMPTS]}) for arm in arms]
    return ReportData(
        title="DP-DMD Studio: comparison",
        subtitle=subtitle,
        facts=facts,
        prompts=list(prompts[:SHOWN_PROMPTS]),
        seeds=list(seeds),
        arms=shown,
        metrics=[],
        measure_labels=measures.labels,
        measure_units=measures.units,
    )
