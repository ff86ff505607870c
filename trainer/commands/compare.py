"""The `compare` command: a checkpoint and its few-step LoRAs side by side, drawn and measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...app.library.home import prompt_cache
from ...app.report.report import write_report
from ...core.diffusion.schedule import Levels, trailing_positions
from ...core.errors import OutputError, SettingsError
from ...core.families import stated_credits, stated_settings
from ...core.lora.file import LoraFile, read_lora
from ...core.recipe.recipe import Recipe
from ..device import choose_device, device_explained
from ..evaluation.comparison import Comparison, measured_report
from ..evaluation.evaluate import (
    ArmSetting,
    EvaluationSet,
    ImageSampler,
    Stage,
    evaluate,
    teacher_arms,
    training_free_arm,
)
from ..evaluation.features import folder_features
from ..evaluation.lora_switch import LoraSwitch
from ..evaluation.sampling import TEACHER_STEPS
from ..loading.checkpoint import Checkpoint, LoadedCheckpoint, OpenedCheckpoint, model_name
from ..memory.portions import Portions
from ..model.conditioning import Conditioning
from ..text.cache import encode_prompts
from ..toys import encoder
from ..toys.worlds import World, measures_for, world_of
from .open_session import default_guidance
from .sample import (
    ImageRequest,
    few_step_sigmas,
    image_size,
    load_for_images,
    open_styles,
)

DEFAULT_STEPS = 4
WORLD_PROMPTS, SHOWN_PROMPTS = 40, 8
log = logging.getLogger("dpdmd_studio.commands")
Encoded = tuple[EvaluationSet, tuple[int, int]]
"""What is compared on, and the size of the images."""


@dataclass(frozen=True, kw_only=True)
class CompareRequest(ImageRequest):
    """What to compare.

    Attributes:
        loras: (file, strength) of the few-step LoRAs.
        training_prompts: what of `prompts` to leave out.
        baseline: whether each LoRA's training-free baseline is drawn, too.
        features: folder of the network that diversity is measured with; None: the built-in one.
    """

    BOUNDS: ClassVar = {
        "steps": (2, 128),
        "teacher_steps": (1, 1000),
        "guidance_scale": (0, 50),
        "batch_size": (1, 1024),
    }

    loras: tuple[tuple[str, float], ...]
    training_prompts: tuple[str, ...] = ()
    teacher_steps: int | None = None
    baseline: bool = True
    features: Path | None = None

    def check(self) -> None:
        """Raise SettingsError for what cannot be compared."""
        if len(self.seeds) < 2:
            raise SettingsError(
                f"Found {len(self.seeds)} seed; diversity needs at least 2, such as --seeds 0-8."
            )
        super().check()


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
    with device_explained(SettingsError, "Lower --batch-size or --resolution."):
        return _compare(request)


def _compare(request: CompareRequest) -> Comparison:
    encoder.register()
    facts = stated_settings(Path(request.model.checkpoint))
    prompts = chosen_prompts(request, world_of(Path(request.model.checkpoint)))
    loras = [(read_lora(Path(path)), strength) for path, strength in request.loras]
    styles = open_styles(request, [lora for lora, _ in loras])
    device = choose_device(request.device)
    features = folder_features(request.features, device) if request.features else None
    recipe = next((lora.recipe for lora, _ in loras if lora.recipe), None)

    def encode(opened: OpenedCheckpoint) -> tuple[Encoded, Conditioning]:
        size = image_size(request, recipe, opened)  # refused before anything is loaded
        material, negative = _material(request, opened, recipe, prompts)
        return (material, size), negative

    loaded = load_for_images(request, recipe, styles, device, encode)
    checkpoint, (material, (width, height)), negative = loaded
    students: list[Student] = []
    for lora, strength in loras:
        taken = [student.name for student in students]
        students.append(_student(request, checkpoint, lora, strength, taken))
    switch = LoraSwitch(checkpoint, {s.name: [(s.lora, s.strength)] for s in students})
    settings = arm_settings(request, checkpoint, students, facts)
    sampler = ImageSampler(
        checkpoint=checkpoint,
        call=checkpoint.call(),
        use=switch.use,
        negative=negative,
        latent_shape=(checkpoint.detection.latent_channels, height // 8, width // 8),
        portions=Portions(device, request.batch_size),
        guidance_rescale=checkpoint.detection.guidance_rescale,
    )
    measures = measures_for(checkpoint.path, features)
    arms = evaluate(sampler, settings, material, measures)
    name = model_name(checkpoint.path)
    data = measured_report(
        arms,
        material,
        measures,
        SHOWN_PROMPTS,
        title="DP-DMD Studio: comparison",
        subtitle=f"{len(students)} LoRAs on {name}, with the teacher.",
        facts=_facts(request, checkpoint, students, len(prompts)),
        metrics=[],
    )
    return Comparison.of(write_report(request.output, data), arms, measures)


def chosen_prompts(request: CompareRequest, world: World | None) -> tuple[str, ...]:
    """The prompts to compare on: those given less those trained on; for a demo checkpoint its own.

    Raises:
        SettingsError: none are left.
    """
    if not request.prompts and world:
        return tuple(world.captions(True, WORLD_PROMPTS, 0))
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


def _student(
    request: CompareRequest,
    checkpoint: Checkpoint,
    lora: LoraFile,
    strength: float,
    taken: list[str],
) -> Student:
    for note in lora.not_applied():
        log.info("%s", note)
    recipe = lora.recipe
    steps = request.steps or (recipe.num_steps if recipe else DEFAULT_STEPS)
    sigmas = few_step_sigmas(steps, recipe, checkpoint)
    name = lora.path.stem if strength == 1.0 else f"{lora.path.stem} at {strength:g}"
    name = f"{name}, {steps} steps"
    same = sum(other == name or other.startswith(f"{name} (") for other in taken)
    name += f" ({same + 1})" if same else ""
    return Student(name, lora, strength, sigmas, recipe.guidance_scale if recipe else 1.0)


def arm_settings(
    request: CompareRequest,
    checkpoint: Checkpoint,
    students: list[Student],
    facts: dict[str, Any],
) -> list[ArmSetting]:
    """Teacher, without guidance on each grid, too; each LoRA with its training-free baseline."""
    grids = [s.lora.recipe.anchor.grid for s in students if s.lora.recipe and s.lora.recipe.anchor]
    steps = request.teacher_steps or facts.get("steps") or max([TEACHER_STEPS, *grids])
    own = Levels.at_positions(checkpoint.schedule, trailing_positions(int(steps))).sigmas
    guidance = request.guidance_scale or default_guidance(checkpoint)
    alone = few_step_sigmas(request.steps or DEFAULT_STEPS, None, checkpoint)
    few = [s.sigmas for s in students] or [alone]
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
    opened: OpenedCheckpoint,
    recipe: Recipe | None,
    prompts: tuple[str, ...],
) -> tuple[EvaluationSet, Conditioning]:
    """(prompts, encoded, and seeds; the negative prompt)."""
    encoded = encode_prompts(
        opened,
        [*prompts, request.negative],
        clip_skip=(recipe.clip_skip if recipe else None) or 1,
        cache_folder=prompt_cache(),
    )
    conditioning = tuple(encoded[prompt] for prompt in prompts)
    return EvaluationSet(prompts, conditioning, request.seeds), encoded[request.negative]


def _facts(
    request: CompareRequest, checkpoint: LoadedCheckpoint, students: list[Student], prompts: int
) -> dict[str, str]:
    """What the head of the report says."""
    facts = {
        "Checkpoint": f"{model_name(checkpoint.path)} ({checkpoint.detection.title})",
        "LoRAs": ", ".join(s.lora.path.name for s in students) or "none",
        "Compared on": f"{prompts} prompts, {len(request.seeds)} seeds each",
    }
    if request.with_loras:
        named = [f"{Path(path).name} at {strength:g}" for path, strength in request.with_loras]
        facts["Together with"] = ", ".join(named)
    if credited := stated_credits(checkpoint.detection):
        facts["Pictures it learned from"] = credited
    return facts
