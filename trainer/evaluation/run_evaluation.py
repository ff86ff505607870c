"""A run's student beside its teacher: the arms and the sampler of an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ...app.library.home import prompt_cache
from ...core.diffusion.schedule import Levels, trailing_positions
from ...core.families import stated_settings
from ..memory.portions import Portions
from ..text.cache import encode_prompts
from ..training.session import Session
from .evaluate import (
    ArmSetting,
    EvaluationSet,
    ImageSampler,
    Stage,
    teacher_arms,
    training_free_arm,
)
from .sampling import TEACHER_STEPS

STUDENT, TEACHER = "student", "teacher"
BATCH = 32


def teacher_levels(session: Session) -> Tensor:
    """The sigmas at which the teacher is drawn: by the steps its file states, else the usual ones.

    A run whose own grid is as fine as the usual one has that; a coarse one is for anchors alone.
    """
    steps = stated_settings(session.checkpoint.path).get("steps")
    grid = session.trainer.grids.teacher
    if steps is None and grid.num_steps >= TEACHER_STEPS:
        return grid.sigmas.cpu()
    positions = trailing_positions(int(steps or TEACHER_STEPS))
    return Levels.at_positions(session.call.schedule, positions).sigmas


def run_arms(session: Session, others: Mapping[str, str] | None = None) -> list[ArmSetting]:
    """Teacher, teacher without guidance, training-free baseline, `others`, then the student."""
    few = session.trainer.grids.student.sigmas.cpu()
    count = session.config.num_steps
    guidance = session.teacher.guidance.scale
    arms = [
        *teacher_arms(teacher_levels(session), few, guidance),
        training_free_arm(STUDENT, few, "Student, off at step 1"),
    ]
    for name, note in (others or {}).items():
        arms.append(ArmSetting(name=name, note=note, stages=(Stage(weights=name, sigmas=few),)))
    student = ArmSetting(
        name=f"DP-DMD student, {count} steps",
        note="The checkpoint with the LoRA that this run made.",
        stages=(Stage(weights=STUDENT, sigmas=few),),
    )
    return [*arms, student]


def session_sampler(
    session: Session,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    portions: Portions | None = None,
) -> ImageSampler:
    """What draws with this session's network.

    Args:
        others: further students' adapters by name.
        portions: how many images at a time, where that is known already.
    """
    own = session.trainer.student_weights()
    adapters = {STUDENT: own, **(others or {})}

    def use(weights: str) -> None:
        if weights == TEACHER:
            session.roles.use("teacher")
        else:
            session.load_student(dict(adapters[weights]))
            session.roles.use("student")

    return ImageSampler(
        checkpoint=session.checkpoint,
        call=session.call,
        use=use,
        negative=session.negative,
        latent_shape=session.latent_shapes[0],
        portions=portions or Portions(session.call.device, BATCH),
        guidance_rescale=session.teacher.guidance.rescale,
    )


@contextlib.contextmanager
def student_kept(session: Session) -> Iterator[None]:
    """Puts the student that is being trained back after the block, which may load others."""
    kept = session.roles.state("student")
    try:
        yield
    finally:
        session.load_student(kept)


def evaluation_set(session: Session, prompts: Sequence[str], seeds: Sequence[int]) -> EvaluationSet:
    """The prompts, encoded, and the seeds."""
    encoded = encode_prompts(
        session.checkpoint,
        list(prompts),
        clip_skip=session.config.clip_skip,
        cache_folder=prompt_cache(),
    )
    return EvaluationSet(tuple(prompts), tuple(encoded[p] for p in prompts), tuple(seeds))
