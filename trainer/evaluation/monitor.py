"""Measures the student on fixed prompts and seeds while it learns, and keeps the best one.

Prompts and seeds are never trained on. The measures are the diversity of each prompt's images
(arXiv:2602.03139, Eq. 9) and their energy distance from the teacher's images of the same prompts,
which grows with lost quality and with lost diversity alike: by it the best student is chosen, in
the features of a network where that is installed (`Perception`), else in the layout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...app.runs.directory import EVALUATIONS, RunDirectory
from ...app.runs.facts import clearly_nearer, deciding, numbers
from ...app.runs.tables import finite
from ...core.errors import NonFiniteError, RunError
from ...core.files import atomic_write
from ...core.images.diversity import sample_diversity
from ..device import is_out_of_memory
from ..memory.portions import Portions
from .evaluate import Drawn, EvaluationSet, EvaluationStoppedError, ImageSampler, draw_timed
from .features import layout_features
from .measures import energy_distance
from .perception import Perception
from .run_evaluation import BATCH, evaluation_set, run_arms, session_sampler, student_kept
from .setbacks import setback

if TYPE_CHECKING:
    from ..training.session import Session

EVALUATION_SEEDS = tuple(range(2_000_001, 2_000_010))
MEASURED_PROMPTS = 6
BEST = "best.safetensors"
log = logging.getLogger("dpdmd_studio.evaluation")


@dataclass(frozen=True)
class Best:
    """An earlier student that is clearly nearer to the teacher than the last one."""

    step: int
    weights: dict[str, Tensor]


class Monitor:
    """Measurements of one run."""

    def __init__(
        self, run: RunDirectory, session: Session, should_stop: Callable[[], bool]
    ) -> None:
        self._run, self._session, self.should_stop = run, session, should_stop
        self._features = layout_features()
        self._prompts = measured_prompts(run.evaluation_prompts(), session.encoded)
        self._material: EvaluationSet | None = None
        self._teacher: list[Tensor] = []
        self._perception: Perception | None = None
        self._portions = Portions(session.call.device, BATCH)
        self._usable = bool(self._prompts and session.config.evaluate_every)

    @property
    def usable(self) -> bool:
        """Whether the run has an evaluation set and asks for measurements."""
        return self._usable

    def due(self, step: int) -> bool:
        """Whether the student after this update is to be measured."""
        config = self._session.config
        wanted = self._usable and step > 0
        return wanted and (step % config.evaluate_every == 0 or step == config.steps)

    def catch_up(self, step: int) -> None:
        """Measure a resumed run's student if the run ended before that was done."""
        if self.due(step) and not any(line["step"] == step for line in self._lines()):
            self.measure(step)

    def _lines(self) -> list[dict[str, Any]]:
        """What was measured before; nothing where it cannot be read, which the log says."""
        try:
            return measured_lines(self._run)
        except RunError as error:
            log.warning("%s", error)
            return []

    def measure(self, step: int) -> None:
        """Measure the student after update `step`; what stands in the way costs no run."""
        try:
            self._measure(step)
        except EvaluationStoppedError:
            pass  # the stop itself is the loop's affair; a resume measures this one again
        except Exception as error:
            if not is_out_of_memory(error):
                if isinstance(error, NonFiniteError):
                    self._usable = bool(self._teacher)  # the teacher itself will draw no better
                log.warning("The student after update %d is not measured. %s", step, setback(error))
                return
            self._usable = False
            log.info(
                "The student is not measured: the device has too little memory to draw it. "
                "--evaluate-every 0 asks for no measurements."
            )

    def sampler(self) -> ImageSampler:
        """What draws, as many images at a time as the device was found to have room for."""
        sampler = session_sampler(self._session, portions=self._portions)
        return replace(sampler, should_stop=self.should_stop, measures=True)

    def _measure(self, step: int) -> None:
        session = self._session
        if self._perception is None:
            teacher = self.teacher().images
            self._teacher = [self._features.of(row) for row in teacher]
            self._perception = Perception(teacher)
        setting = run_arms(session)[-1]
        with student_kept(session):
            images = self.sampler().draw(setting, self.material(), self._watch)
        found = [self._features.of(row) for row in images]
        line = _numbers(step, found, self._teacher) | self._perception(images)
        earlier = measured_lines(self._run)
        self._run.append_metrics(line, EVALUATIONS)
        distance, _ = deciding([*earlier, line])
        if all(line[distance] <= other[distance] for other in earlier):
            self._keep(step)
        log.info(
            "After update %d: %s of the teacher's diversity, distance from the teacher %.4f",
            step,
            f"{line['diversity_kept']:.0%}",
            line[distance],
        )

    def _watch(self, done: int, total: int) -> None:
        if self.should_stop():
            raise EvaluationStoppedError

    def material(self) -> EvaluationSet:
        """The prompts, encoded, and the seeds."""
        if self._material is None:
            self._material = evaluation_set(self._session, self._prompts, EVALUATION_SEEDS)
        return self._material

    def teacher(self) -> Drawn:
        """The teacher's images; drawn once per run and kept in its folder."""
        kept = _load_drawn(self._run, self._prompts)
        if kept is not None:
            return kept
        setting = run_arms(self._session)[0]
        count = len(self._prompts) * len(EVALUATION_SEEDS)
        log.info("Drawing the teacher's %d images to measure against, once", count)
        drawn = draw_timed(self.sampler(), setting, self.material())
        _save_drawn(self._run, self._prompts, drawn)
        return drawn

    def _keep(self, step: int) -> None:
        """Put this student by as the best so far."""
        path = self._run.states / BEST
        with atomic_write.atomic_path(path) as temporary:
            save_file(self._session.trainer.student_weights(), temporary, {"step": str(step)})

    def best(self) -> Best | None:
        """The best earlier student if it is clearly better than the last, else None.

        One that cannot be read is named in the log, and the last one counts.
        """
        lines = self._lines()
        if len(lines) < 2 or not (self._run.states / BEST).exists():
            return None
        distance, by_prompt = deciding(lines)
        last = lines[-1]
        first = min(lines, key=lambda line: line[distance])
        if first is last or not clearly_nearer(first[by_prompt], last[by_prompt]):
            return None
        try:
            with safe_open(self._run.states / BEST, framework="pt") as file:
                step, names = (file.metadata() or {}).get("step"), file.keys()
                weights = {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): the last student is written.", BEST, error)
            return None
        if step != str(int(first["step"])):  # kept by another feature, before a resume
            log.warning(
                "%s is not the student after update %d: the last one is written.",
                BEST,
                first["step"],
            )
            return None
        return Best(int(first["step"]), weights)


def measured_prompts(held_out: Sequence[str], trained: Collection[str]) -> list[str]:
    """What a run is measured on, of what it holds out and the texts that it trains on.

    Alternatives of a training prompt may come out as one that was held out.
    """
    known = set(trained)
    return [text for text in held_out if text not in known][:MEASURED_PROMPTS]


def measured_lines(run: RunDirectory) -> list[dict[str, Any]]:
    """Lines of evaluations.jsonl that hold all that is read of them, each as long as the last."""
    keys = ("diversity_kept", "teacher_distance")
    found = [
        line
        for line in run.metrics(EVALUATIONS)
        if numbers(line, "distances") and all(finite(line.get(key)) is not None for key in keys)
    ]
    return [line for line in found if len(line["distances"]) == len(found[-1]["distances"])]


def _numbers(step: int, found: list[Tensor], teacher: list[Tensor]) -> dict[str, Any]:
    diversity = mean(sample_diversity(row) for row in found)
    own = mean(sample_diversity(row) for row in teacher)
    apart = [energy_distance(a, b) for a, b in zip(found, teacher, strict=True)]
    return {
        "step": step,
        "sample_diversity": diversity,
        "diversity_kept": diversity / own if own else 1.0,
        "teacher_distance": mean(apart),
        "distances": apart,
    }


def _load_drawn(run: RunDirectory, prompts: Sequence[str]) -> Drawn | None:
    """What was drawn before, if all of it is there and for the same prompts and seeds."""
    try:
        facts = run.read_json("evaluation/teacher.json")
        if facts["prompts"] != list(prompts) or facts["seeds"] != list(EVALUATION_SEEDS):
            return None
        images = [
            [np.array(Image.open(_image(run, p, seed))) for seed in EVALUATION_SEEDS]
            for p in range(len(prompts))
        ]
        return Drawn(images, float(facts["seconds_per_picture"]))
    except (RunError, OSError, KeyError, TypeError, ValueError):
        return None  # drawn again


def _save_drawn(run: RunDirectory, prompts: Sequence[str], drawn: Drawn) -> None:
    run.evaluation.mkdir(exist_ok=True)
    for p, row in enumerate(drawn.images):
        for seed, image in zip(EVALUATION_SEEDS, row, strict=True):
            with atomic_write.atomic_path(_image(run, p, seed)) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")
    facts = {
        "prompts": list(prompts),
        "seeds": list(EVALUATION_SEEDS),
        "seconds_per_picture": drawn.seconds_per_picture,
    }
    run.write_json("evaluation/teacher.json", facts)


def _image(run: RunDirectory, prompt: int, seed: int) -> Path:
    return run.evaluation / f"teacher-{prompt + 1:02d}-{seed}.png"
