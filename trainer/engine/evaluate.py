"""Arms of a comparison: pictures of teacher and student on the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .conditioning import Conditioning
from .report import Arm
from .sampling import sample_latents
from .session import Session
from .shapes import ATTRIBUTES
from .shapes_measure import adherence, measure, unsaid_entropy
from .vae import decode

# measures(prompts, pictures[prompt][seed]) -> numbers by name
Measures = Callable[[Sequence[str], list[list[np.ndarray]]], dict[str, float]]
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ArmSetting:
    """One way of making pictures: which role, on which grid, under which guidance."""

    name: str
    note: str
    role: str
    sigmas: Tensor
    guidance_scale: float = 1.0

    @property
    def evaluations(self) -> int:
        """Network evaluations a picture costs."""
        return (len(self.sigmas) - 1) * (1 if self.guidance_scale == 1.0 else 2)


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts, their conditioning (batch size 1 each) and seeds: the same for every arm."""

    prompts: tuple[str, ...]
    conditioning: tuple[Conditioning, ...]
    seeds: tuple[int, ...]


def evaluate_arm(
    session: Session, setting: ArmSetting, material: EvaluationSet, measures: Measures
) -> Arm:
    """All pictures of one arm, measured; seconds are sampling and decoding per picture."""
    session.roles.use(setting.role)
    jobs = [(p, seed) for p in range(len(material.prompts)) for seed in material.seeds]
    started = time.perf_counter()
    flat: list[np.ndarray] = []
    for first in range(0, len(jobs), BATCH):
        part = jobs[first : first + BATCH]
        latents = sample_latents(
            session.call,
            Conditioning.cat([material.conditioning[p] for p, _ in part]),
            session.negative,
            [seed for _, seed in part],
            session.latent_shapes[0],
            setting.sigmas,
            guidance_scale=setting.guidance_scale,
            guidance_rescale=session.config.guidance_rescale,
        )
        flat += list(decode(session.checkpoint, latents))
    seconds = (time.perf_counter() - started) / len(jobs)
    count = len(material.seeds)
    pictures = [flat[i : i + count] for i in range(0, len(flat), count)]
    return Arm(
        name=setting.name,
        note=setting.note,
        evaluations=setting.evaluations,
        seconds_per_picture=seconds,
        pictures=pictures,
        measures=measures(material.prompts, pictures),
    )


SHAPES_LABELS = {
    "valid": ("Clean pictures", "Share of pictures with one clean shape on its background."),
    "adherence": ("Follows prompt", "Share that are clean and show everything the prompt says."),
    "diversity": (
        "Diversity",
        "How evenly what the prompt leaves open is spread over the seeds: mean entropy of the "
        "unsaid attributes of clean pictures, 100% is perfectly even.",
    ),
}


def shapes_measures(prompts: Sequence[str], pictures: list[list[np.ndarray]]) -> dict[str, float]:
    """Exact counts for the embedded teachers: clean pictures, prompt adherence, diversity."""
    pairs = [
        (prompt, measure(picture))
        for prompt, row in zip(prompts, pictures, strict=True)
        for picture in row
    ]
    spread = unsaid_entropy(pairs)
    named = {f"diversity_{name}": spread[name] for name in ATTRIBUTES if name in spread}
    return {
        "valid": sum(found.valid for _, found in pairs) / len(pairs),
        "adherence": sum(adherence(prompt, found) for prompt, found in pairs) / len(pairs),
        "diversity": sum(named.values()) / max(1, len(named)),
        **named,
    }
