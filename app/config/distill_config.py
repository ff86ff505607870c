"""Every setting of a distillation, once: command line, nodes and pages are made from this class.

Imports neither torch nor any host; settings travel as JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import SettingsError
from .knobs import AUTO, check_value, knob, parse_resolutions

logger = logging.getLogger("dpdmd_studio.settings")

# Settings that earlier versions had: what stood for "not asked for", and what to use instead. Files
# that name them, such as runs and LoRAs of then, are read as if they did not.
REMOVED = {
    "shard_base": (
        False,
        "the frozen network is whole on every device; --base-weights int8 and --offload-base make "
        "it take less memory there",
    ),
}

# Values that earlier versions had, by setting: what is taken for them, and why.
REPLACED = {
    "base_weights": {
        "fp8": ("int8", "it takes as much memory and changes the frozen network less"),
    },
}

USUAL_RESCALE = -1.0
"""Leaves the guidance rescale to what suits the model."""

# Settings that came later, with what was done before them: what is kept (runs, shared settings, a
# LoRA's metadata) names them only where they are otherwise: it stays what it was, and earlier
# versions read it.
LATER = {
    "shift": 0.0,
    "guidance_rescale": USUAL_RESCALE,  # the choice to leave it open came later
    "real_guidance": 0.0,
    "real_guidance_low": 0,
    "real_guidance_high": 1000,
    "renoise_anneal_steps": 0,
}

of_teacher = functools.partial(knob, group="teacher")
of_student = functools.partial(knob, group="student")
of_machine = functools.partial(knob, group="machine")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of one distillation run. Frozen; `validate` checks each alone and all together."""

    # The teacher
    prediction: str = of_teacher(
        AUTO,
        "What the checkpoint predicts; auto reads it off the file (SD 1.x and SDXL: eps unless "
        "the file says otherwise; a rectified flow of SDXL mostly has to be set).",
        choices=(AUTO, "eps", "v", "flow"),
    )
    zero_terminal_snr: str = of_teacher(
        AUTO,
        "Whether a v-prediction checkpoint was trained with zero terminal SNR; auto "
        "reads it off the file, which merges often no longer say.",
        choices=(AUTO, "yes", "no"),
    )
    shift: float = of_teacher(
        0.0,
        "Shift of a rectified flow's noise levels, as in ModelSamplingSD3; 0 takes the file's, or "
        "the family's (3).",
        within=(0.0, 100.0),
    )
    teacher_guidance: float = of_teacher(
        0.0, "Guidance scale of the teacher; 0 takes the family's default.", within=(0.0, 50.0)
    )
    teacher_negative: str = of_teacher(
        "",
        "Negative prompt of the teacher: name the one that you always use with this checkpoint, "
        "since with it the teacher is the model that you know. Empty is the empty prompt.",
    )
    zero_negative: bool = of_teacher(False, "Use zeros instead of an encoded negative prompt.")
    guidance_rescale: float = of_teacher(
        USUAL_RESCALE,
        "Rescale guided predictions towards the conditional's contrast; -1 takes .7 for "
        "v-prediction with zero terminal SNR (arXiv:2305.08891), for others 0.",
        within=(USUAL_RESCALE, 1.0),
    )
    real_guidance: float = of_teacher(
        0.0,
        "Guidance scale of the DMD real score alone; 0 takes the teacher's, 1 is none.",
        within=(0.0, 50.0),
    )
    real_guidance_low: int = of_teacher(
        0,
        "Guidance interval of the real score: the least timestep at which it is guided.",
        within=(0, 1000),
    )
    real_guidance_high: int = of_teacher(
        1000,
        "Guidance interval of the real score: the highest timestep at which it is guided. Guidance "
        "at high noise may drive collapse (arXiv:2604.04018); leaving it out saves an evaluation.",
        within=(0, 1000),
    )
    clip_skip: int = of_teacher(
        1, "SD 1.x: last CLIP layers to skip, counted from 1 as in hosts.", within=(1, 12)
    )
    resolution: str = of_teacher(
        "",
        "Width x height, or several separated by commas (one is drawn per update); "
        "empty takes the model's own.",
    )

    # The student
    num_steps: int = of_student(4, "N: network evaluations of the student.", within=(2, 16))
    teacher_steps: int = of_student(
        12,
        "Steps of the grid on which the teacher goes to its anchors; 0 takes 7 per student step.",
        within=(0, 1000),
    )
    anchor_step: int = of_student(
        0,
        "K: teacher steps rolled to the anchor; 0 stops where the student's first step ends.",
        within=(0, 1000),
    )
    anchor_target: str = of_student(
        "chord",
        "chord: the straight line from the noise to the anchor (Eq. 6); "
        "denoised: the teacher's x0 at the anchor (Appendix C).",
        choices=("chord", "denoised"),
    )
    num_anchored_steps: int = of_student(
        0,
        "m: how many first steps are anchored to the teacher's path; the paper anchors one. "
        "0 takes two of a flow, and one of other models.",
        within=(0, 15),
    )
    diversity_weight: float = of_student(
        0.2, "lambda: weight of the anchored steps' loss; the paper's is .05.", within=(0.0, 100.0)
    )
    objective: str = of_student(
        "dp_dmd",
        "dp_dmd is the method; the others switch parts off for comparison.",
        choices=("dp_dmd", "dmd", "no_detach", "detach_only"),
    )
    gradient_steps: str = of_student(
        AUTO,
        "Which steps carry the DMD gradient: one random step, last, or all (most memory); auto "
        "takes the last where several are anchored, else a random one.",
        choices=(AUTO, "random", "last", "all"),
    )
    renoise_anneal_steps: int = of_student(
        0,
        "Student updates at first that re-noise samples to high noise alone: from the upper half "
        "of the timesteps, whose lower end then falls to the usual one; 0: none.",
        within=(0, 1_000_000),
    )

    # Training
    steps: int = knob(200, "Student updates.", within=(1, 1_000_000))
    batch_size: int = knob(8, "Images per update.", within=(1, 1024))
    fake_updates: int = knob(2, "Fake-score updates per student update.", within=(1, 100))
    fake_head_start: int = knob(
        0, "Fake-score updates before the first student update.", within=(0, 100_000)
    )
    share_rollouts: bool = knob(
        True, "Train the fake score on the student update's own samples instead of fresh ones."
    )
    student_rank: int = knob(64, "Rank of the student's LoRA.", within=(1, 1024))
    fake_rank: int = knob(64, "Rank of the fake score's LoRA.", within=(1, 1024))
    lora_layers: str = knob(
        "full",
        "Which layers get LoRA: attention and feed-forward only, or full (convolutions too).",
        choices=("attention", "full"),
    )
    student_lr: float = knob(1e-4, "Learning rate of the student.", within=(0.0, 1.0))
    fake_lr: float = knob(1e-4, "Learning rate of the fake score.", within=(0.0, 1.0))
    optimizer: str = knob(
        "adamw",
        "adamw; adamw8bit: moments in 8 bit, a quarter of the memory; needs bitsandbytes.",
        choices=("adamw", "adamw8bit"),
    )
    warmup_steps: int = knob(20, "Student updates of linear warm-up.", within=(0, 100_000))
    final_lr_fraction: float = knob(
        0.1, "Cosine decay ends at this share of the learning rate.", within=(0.0, 1.0)
    )
    max_grad_norm: float = knob(1.0, "Gradient norm is clipped to this.", within=(1e-6, 1e6))
    ema_decay: float = knob(
        0.0,
        "Decay of the student's moving average, ramped up at the start; 0 keeps the last weights.",
        within=(0.0, 0.99999),
    )
    evaluation_prompts: int = knob(
        6,
        "Held-out prompts to measure the student on, at most a fifth of all; 0: no measurements.",
        within=(0, 1000),
    )
    keep: str = knob(
        "last",
        "Which student is written: always the last, or the best measured one where one is clearly "
        "better than the last.",
        choices=("last", "best"),
    )
    seed: int = knob(0, "Seed of prompts, noise and initial weights.", within=(0, 2**31 - 1))

    # The machine
    device: str = of_machine(AUTO, "cuda, xpu, mps or cpu; auto takes the best that works.")
    dtype: str = of_machine(
        AUTO, "Number format of the network.", choices=(AUTO, "float32", "bfloat16", "float16")
    )
    base_weights: str = of_machine(
        "keep",
        "How the frozen network is stored: keep (in dtype), int8 or nf4 (4 bits, needs "
        "bitsandbytes). It computes in dtype all the same; fewer bits take less memory, more time "
        "and change the teacher a little.",
        choices=("keep", "int8", "nf4"),
    )
    offload_base: bool = of_machine(
        False,
        "Keep the frozen network in the CPU's memory and bring it to the device a layer at a "
        "time: least memory, slower, same results.",
    )
    attention: str = of_machine(
        AUTO,
        "auto takes xformers on CUDA where it works, else sdpa, which is PyTorch's own.",
        choices=(AUTO, "sdpa", "xformers"),
    )
    gradient_checkpointing: bool = of_machine(
        False, "Recompute activations in the backward pass: less memory, about a third slower."
    )
    micro_batch_size: int = of_machine(
        0,
        "Images per forward and backward pass, their gradients summed: less memory for a large "
        "batch; 0 takes the whole batch at once.",
        within=(0, 1024),
    )
    offload_optimizer: bool = of_machine(
        False, "Keep Adam's moments in the CPU's memory between steps: same result."
    )
    fit_memory: bool = of_machine(True, "Save more memory where too little is free.")
    save_every: int = of_machine(
        50,
        "Student updates between saved LoRAs, and states to resume from; a large state is saved at "
        "most every ten minutes.",
        within=(1, 1_000_000),
    )
    preview_every: int = of_machine(
        50, "Student updates between previews; 0 makes none.", within=(0, 1_000_000)
    )
    evaluate_every: int = of_machine(
        50,
        "Student updates between measurements of its diversity and its distance from the teacher; "
        "0 makes none.",
        within=(0, 1_000_000),
    )

    @property
    def effective_teacher_steps(self) -> int:
        """Steps of the teacher's grid after "0 takes 7 per student step"."""
        return self.teacher_steps or 7 * self.num_steps

    @property
    def effective_anchor_step(self) -> int:
        """K after "0 stops where the student's first step ends"."""
        return self.anchor_step or max(1, round(self.effective_teacher_steps / self.num_steps))

    def anchored_for(self, prediction: str) -> DistillConfig:
        """These settings with the anchored steps and the gradient that a model's prediction asks.

        Two steps of a flow, whose student keeps more of the teacher's variety so, as far as the
        teacher passes through the sigma of the second one (docs/fidelity.md).

        Args:
            prediction: "eps", "v" or "flow".
        """
        per_step, rest = divmod(self.effective_teacher_steps, self.num_steps)
        two = (
            prediction == "flow" and self.objective != "dmd" and self.num_steps > 2
            and not rest and self.effective_anchor_step < 2 * per_step
        )  # fmt: skip
        anchored = self.num_anchored_steps or (2 if two else 1)
        usual = "last" if anchored > 1 and self.objective != "dmd" else "random"
        gradient = usual if self.gradient_steps == AUTO else self.gradient_steps
        return dataclasses.replace(self, num_anchored_steps=anchored, gradient_steps=gradient)

    @property
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) pairs of `resolution`; empty where the model's own is asked for."""
        return parse_resolutions(self.resolution)

    def validate(self) -> DistillConfig:
        """This configuration, or SettingsError naming what was found and what is allowed."""
        for spec in dataclasses.fields(self):
            check_value(spec, getattr(self, spec.name))
        if self.effective_anchor_step > self.effective_teacher_steps:
            raise SettingsError(
                f"anchor_step (K) is {self.anchor_step}, but the teacher's grid has only "
                f"{self.effective_teacher_steps} steps. Lower --anchor-step or raise "
                "--teacher-steps."
            )
        if self.num_anchored_steps >= self.num_steps and self.objective != "dmd":
            raise SettingsError(
                f"num_anchored_steps is {self.num_anchored_steps} of {self.num_steps} steps; at "
                f"least one step must be left to distribution matching: at most "
                f"{self.num_steps - 1}."
            )
        if self.num_anchored_steps > 1 and self.effective_teacher_steps % self.num_steps:
            raise SettingsError(
                f"Anchoring {self.num_anchored_steps} steps needs the teacher to pass through the "
                f"student's sigmas: teacher_steps must be a multiple of {self.num_steps}, found "
                f"{self.effective_teacher_steps}."
            )
        per_step = self.effective_teacher_steps // self.num_steps
        if self.num_anchored_steps > 1 and self.effective_anchor_step >= 2 * per_step:
            raise SettingsError(
                f"anchor_step (K) is {self.effective_anchor_step}; with several anchored steps the "
                f"first anchor must come before the second one, at teacher step {2 * per_step}."
            )
        if USUAL_RESCALE < self.guidance_rescale < 0:
            raise SettingsError(
                f"guidance_rescale is {self.guidance_rescale}; expected 0 to 1, or "
                f"{USUAL_RESCALE:g} for what suits the model."
            )
        if self.real_guidance_low >= self.real_guidance_high:
            raise SettingsError(
                f"real_guidance_low is {self.real_guidance_low}; it must lie below "
                f"real_guidance_high, which is {self.real_guidance_high}. For a real score "
                "without guidance set real_guidance to 1."
            )
        parse_resolutions(self.resolution)
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON."""
        return dataclasses.asdict(self)

    def to_file(self) -> dict[str, Any]:
        """The same for what is kept, those of `LATER` only where they are asked for."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in LATER or value != LATER[name]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillConfig:
        """Settings from their names; unknown names and wrong types are errors, never ignored.

        Settings of `REMOVED` alone are left out, with a line in the log.
        """
        values = without_removed(values)
        known = {spec.name for spec in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(f"Unknown settings: {', '.join(unknown)}.")
        return cls(**values).validate()


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are today: of `REMOVED` none, for values of `REPLACED` their others.

    What was asked for and is not done is named in the log.
    """
    for name, (unasked, instead) in REMOVED.items():
        if values.get(name, unasked) != unasked:
            _say(f"The setting {name} no longer exists and is ignored: {instead}.")
    kept = {name: value for name, value in values.items() if name not in REMOVED}
    for name, others in REPLACED.items():
        value = kept.get(name)
        if isinstance(value, str) and value in others:
            kept[name], why = others[value]
            _say(f"{name} {value} no longer exists; {kept[name]} is taken: {why}.")
    return kept


@functools.cache  # a page reads a run's settings again and again
def _say(text: str) -> None:
    logger.warning("%s", text)
