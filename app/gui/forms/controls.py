"""The settings as controls: which are plain, which wait under "Advanced", and what each says.

Made from DistillConfig, so a new knob appears by itself, under "Advanced".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ....core.errors import SettingsError
from ...config.distill_config import DistillConfig

Kind = Literal["choice", "switch", "text", "whole", "number"]

PLAIN = (
    "steps", "num_steps", "batch_size", "resolution", "student_rank", "seed", "teacher_negative",
)  # fmt: skip
"""Shown at first, in this order."""
GROUPS = {
    "student": "The student and its objective",
    "teacher": "The teacher",
    "training": "Training",
    "machine": "The machine",
}
LABELS = {
    "teacher_steps": "Steps of the teacher",
    "anchor_step": "Anchor step (K)",
    "num_anchored_steps": "Anchored steps (m)",
    "fake_updates": "Fake-score updates for each update",
    "fake_head_start": "Fake-score head start (updates)",
    "fake_rank": "LoRA rank of the fake score",
    "lora_layers": "Layers with LoRA",
    "steps": "Training updates",
    "num_steps": "Steps per image",
    "batch_size": "Images per update",
    "resolution": "Resolution (pixels)",
    "student_rank": "LoRA rank",
    "student_lr": "Learning rate of the student",
    "fake_lr": "Learning rate of the fake score",
    "teacher_guidance": "Guidance of the teacher",
    "teacher_negative": "Your negative prompt",
    "real_guidance": "Guidance of the real score",
    "real_guidance_low": "Guidance interval of the real score: from timestep",
    "real_guidance_high": "Guidance interval of the real score: to timestep",
    "renoise_anneal_steps": "Re-noising to high noise at first (updates)",
    "zero_negative": "Zeros for the negative prompt",
    "zero_terminal_snr": "Zero terminal SNR",
    "clip_skip": "CLIP skip",
    "max_grad_norm": "Gradient norm limit",
    "ema_decay": "EMA decay",
    "final_lr_fraction": "Final learning rate (fraction)",
    "dtype": "Data type",
    "evaluation_prompts": "Held-out prompts for evaluation",
    "keep": "Which student to keep",
    "save_every": "Save every (updates)",
    "preview_every": "Preview every (updates)",
    "evaluate_every": "Evaluate every (updates)",
    "warmup_steps": "Warm-up (updates)",
}
INFO = {
    "steps": "200 is a good start.",
    "num_steps": "4 is what hosts reproduce best.",
    "batch_size": "More is steadier, and needs memory.",
    "resolution": "Empty: the model's own. Or 1024x1024.",
    "student_rank": "Size of the LoRA; 64 suits most.",
    "seed": "Same seed and settings: same run.",
    "teacher_negative": "The one that you always use with this checkpoint: with it, the teacher is "
    "the model that you know. Empty if you use none.",
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """One setting as a page shows it."""

    name: str
    label: str
    info: str
    kind: Kind
    group: str
    default: Any
    choices: tuple[str, ...] = ()


@functools.cache
def controls() -> Mapping[str, Control]:
    """Every setting by name, in the order of DistillConfig."""
    return {spec.name: _control(spec) for spec in dataclasses.fields(DistillConfig)}


def advanced() -> dict[str, list[Control]]:
    """Group title -> the settings under "Advanced"."""
    every = [item for item in controls().values() if item.name not in PLAIN]
    return {
        title: [item for item in every if item.group == group] for group, title in GROUPS.items()
    }


def _control(spec: dataclasses.Field[Any]) -> Control:
    choices = spec.metadata["choices"] or ()
    kinds: dict[type, Kind] = {bool: "switch", int: "whole", float: "number", str: "text"}
    info = INFO.get(spec.name) or spec.metadata["help"]
    return Control(
        name=spec.name,
        label=LABELS.get(spec.name, spec.name.replace("_", " ").capitalize()),
        info=info,
        kind="choice" if choices else kinds[type(spec.default)],
        group=spec.metadata["group"],
        default=spec.default,
        choices=choices,
    )


def config_of(values: Mapping[str, Any]) -> DistillConfig:
    """The settings that the controls hold; names without a control's value keep their default.

    Raises:
        SettingsError: an empty number, or what DistillConfig refuses; labels are used for names.
    """
    chosen = {}
    for name, item in controls().items():
        if name not in values:
            continue
        value = values[name]
        if value is None or (value == "" and item.kind in ("whole", "number", "choice")):
            raise SettingsError(f"{item.label} is empty; its default is {item.default}.")
        if item.kind == "whole" and isinstance(value, float) and value == int(value):
            value = int(value)
        chosen[name] = value.strip() if isinstance(value, str) else value
    try:
        return DistillConfig.from_dict(chosen)
    except SettingsError as error:
        raise SettingsError(_with_labels(str(error))) from error


def _with_labels(message: str) -> str:
    """The message with a setting's label in front where it begins with its name."""
    first, _, rest = message.partition(" ")
    item = controls().get(first)
    return f"{item.label} {rest}" if item and rest else message
