"""Arms of a comparison: images of teacher and students on the same prompts and seeds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...app.report.data import Arm
from ...core.diffusion.guidance import Guidance
from ..loading.checkpoint import LoadedCheckpoint
from ..loading.decoding import decode
from ..memory.portions import Portions
from ..model.conditioning import Conditioning, PromptPair
from ..model.network import NetworkCall
from .measures import MeasureSet
from .sampling import Trajectory, initial_latents, integrate

log = logging.getLogger("dpdmd_studio.evaluation")
TELL_SECONDS = 10.0
Watch = Callable[[int, int], None]
"""(network evaluations done, of how many)"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a trajectory that one set of weights draws.

    Attributes:
        weights: "teacher" or the name of a student, as the sampler's `use` knows it.
        sigmas: decreasing, shape (n + 1,); the next stage starts where this one ends.
        guidance_scale: 1.0 is off.
    """

    weights: str
    sigmas: Tensor
    guidance_scale: float = 1.0

    @property
    def evaluations(self) -> int:
        """Network evaluations it costs."""
        return (len(self.sigmas) - 1) * (1 if self.guidance_scale == 1.0 else 2)


@dataclass(frozen=True, kw_only=True)
class ArmSetting:
    """One way of making images."""

    name: str
    note: str
    stages: tuple[Stage, ...]

    @property
    def evaluations(self) -> int:
        """Network evaluations an image costs."""
        return sum(stage.evaluations for stage in self.stages)


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts, their conditioning (batch size 1 each) and seeds: the same for every arm."""

    prompts: tuple[str, ...]
    conditioning: tuple[Conditioning, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImageSampler:
    """What draws the images of all arms.

    Attributes:
        checkpoint: its decoder makes the images.
        call: the network.
        use: puts the named weights in force.
        negative: conditioning of the negative prompt, batch size 1.
        latent_shape: (C, h, w) of every image.
        portions: how many images are drawn at a time.
        should_stop: asked now and then while an arm is drawn and timed.
        measures: whether the images are measured, and not merely shown.
    """

    checkpoint: LoadedCheckpoint
    call: NetworkCall
    use: Callable[[str], None]
    negative: Conditioning
    latent_shape: tuple[int, int, int]
    portions: Portions
    guidance_rescale: float = 0.0
    should_stop: Callable[[], bool] = lambda: False
    measures: bool = False

    def draw(
        self, setting: ArmSetting, material: EvaluationSet, watch: Watch = lambda done, total: None
    ) -> list[list[np.ndarray]]:
        """Images of one arm, by [prompt][seed]; `watch` is told what part of the work is done.

        As many at once as the device has room for, and fewer once it ran out of memory.

        Raises:
            NonFiniteError: some of the latents are no numbers, or what is decoded of them.
            RuntimeError: the device has too little memory for one image.
        """
        jobs = [(p, seed) for p in range(len(material.prompts)) for seed in material.seeds]
        latents = initial_latents(
            self.call.schedule,
            [seed for _, seed in jobs],
            self.latent_shape,
            float(setting.stages[0].sigmas[0]),
        )
        prompts, before = [material.conditioning[p] for p, _ in jobs], 0
        for stage in setting.stages:
            self.use(stage.weights)
            guidance = Guidance(stage.guidance_scale, self.guidance_rescale)
            trajectory, parts = Trajectory(stage.sigmas, guidance), []
            guided, first = stage.guidance_scale != 1.0, 0
            while first < len(jobs):
                rows = _batch(prompts, first, self.portions.size(guided=guided))
                pair = PromptPair.of(Conditioning.cat(prompts[rows]), self.negative)
                work = partial(integrate, self.call, latents[rows], pair, trajectory)
                part = self.portions.attempt(rows.stop - first, work, guided=guided)
                if part is None:
                    continue
                parts.append(part)
                first = rows.stop
                watch(before + first * stage.evaluations, len(jobs) * setting.evaluations)
            latents = torch.cat(parts)
            before += len(jobs) * stage.evaluations
        flat = list(decode(self.checkpoint, latents, setting.name, measured=self.measures))
        count = len(material.seeds)
        return [flat[i : i + count] for i in range(0, len(flat), count)]


def _batch(prompts: Sequence[Conditioning], first: int, size: int) -> slice:
    """From `first` on at most `size` prompts that a batch draws just as each would be alone."""
    last = first + 1
    while last < min(len(prompts), first + size) and (
        prompts[first].batches_exactly_with(prompts[last])
    ):
        last += 1
    return slice(first, last)


class EvaluationStoppedError(Exception):
    """Somebody asked to stop while images were drawn."""


def progress_watch(name: str, should_stop: Callable[[], bool]) -> Watch:
    """A watch that says how far the drawing is, now and then, and ends it when that is asked for.

    What it returns raises EvaluationStoppedError.
    """
    started = told = time.monotonic()

    def watch(done: int, total: int) -> None:
        nonlocal told
        if should_stop():
            raise EvaluationStoppedError
        now = time.monotonic()
        if now - told >= TELL_SECONDS and done < total:
            told = now
            minutes = (now - started) * (total - done) / done / 60
            log.info("%s: %.0f%% drawn, about %.1f min left", name, 100 * done / total, minutes)

    return watch


@dataclass(frozen=True)
class Drawn:
    """Images by [prompt][seed], and the seconds that each took, decoding included."""

    images: list[list[np.ndarray]]
    seconds_per_picture: float


def evaluate(
    sampler: ImageSampler,
    settings: Sequence[ArmSetting],
    material: EvaluationSet,
    measures: MeasureSet,
    *,
    known: Mapping[str, Drawn] | None = None,
) -> list[Arm]:
    """All arms drawn and measured, the teacher first.

    Every arm starts each prompt and seed from the same noise.

    Args:
        known: what has been drawn before, by arm.

    Raises:
        EvaluationStoppedError: the sampler's `should_stop` said so.
    """
    arms: list[Arm] = []
    for number, setting in enumerate(settings, 1):
        drawn = (known or {}).get(setting.name)
        if drawn is None:
            log.info("[%d/%d] Drawing: %s", number, len(settings), setting.name)
            drawn = draw_timed(sampler, setting, material)
        teacher = arms[0].images if arms else drawn.images
        arms.append(
            Arm(
                name=setting.name,
                note=setting.note,
                evaluations=setting.evaluations,
                seconds_per_image=drawn.seconds_per_picture,
                images=drawn.images,
                measures=measures(material.prompts, drawn.images, teacher),
            )
        )
    return arms


def draw_timed(
    sampler: ImageSampler,
    setting: ArmSetting,
    material: EvaluationSet,
) -> Drawn:
    """The images of one arm and how long they took; EvaluationStoppedError on request."""
    started = time.perf_counter()
    watch = progress_watch(setting.name, sampler.should_stop)
    images = sampler.draw(setting, material, watch)
    seconds = time.perf_counter() - started
    return Drawn(images, seconds / (len(material.prompts) * len(material.seeds)))


def teacher_arms(own: Tensor, few: Tensor, guidance_scale: float) -> tuple[ArmSetting, ArmSetting]:
    """The teacher at its own guided steps, and without guidance on a student's grid.

    Args:
        own: the teacher's sigmas, shape (steps + 1,).
        few: the student's, shape (N + 1,).
    """
    guided = ArmSetting(
        name=f"Teacher, {len(own) - 1} steps, guidance {guidance_scale:g}",
        note="The checkpoint as it is meant to be used.",
        stages=(Stage(weights="teacher", sigmas=own, guidance_scale=guidance_scale),),
    )
    few_step = ArmSetting(
        name=f"Teacher without guidance, {len(few) - 1} steps",
        note="The same checkpoint on the student's grid, without guidance: what few steps look "
        "like without distillation.",
        stages=(Stage(weights="teacher", sigmas=few),),
    )
    return guided, few_step


def training_free_arm(weights: str, few: Tensor, name: str) -> ArmSetting:
    """The training-free baseline: `weights` off at the first step, on afterwards."""
    stages = (Stage(weights="teacher", sigmas=few[:2]), Stage(weights=weights, sigmas=few[1:]))
    note = "The checkpoint draws the first step, the LoRA the others: costs no training."
    return ArmSetting(name=name, note=note, stages=stages)
