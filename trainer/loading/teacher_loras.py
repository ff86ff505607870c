"""The user's LoRAs that become part of a run's teacher: checked early, merged, named, included."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...app.config.request import DistillRequest, TeacherLora
from ...core.errors import LoraError, RunError, SettingsError
from ...core.families import family
from ...core.lora.contents import refuse_few_step
from ...core.lora.file import lora_deltas, parameter_shapes
from ...core.lora.math import LoraPair, concatenated
from ...core.recipe.checks import MAX_RECORDS
from ...core.recipe.recipe import MergedLora
from .checkpoint import LoadedCheckpoint
from .lora_merge import MergingLora, open_merging, plan_merge
from .parts import find_components

MAX_STRENGTH = 10


def check_teacher_loras(
    request: DistillRequest, text_encoders: Mapping[str, Path]
) -> DistillRequest:
    """The request with the hash of each LoRA, once all of them are known to fit its checkpoint.

    Only headers of the checkpoint are read.

    Args:
        text_encoders: files that replace or complete the checkpoint's own, by encoder.

    Raises:
        LoraError: a file is missing, no LoRA, fits nothing, or cannot be merged or included.
        SettingsError: what is asked for contradicts itself.
    """
    asked = request.teacher_loras
    if request.include_teacher_loras and not asked:
        raise SettingsError(
            "--include-teacher-loras has nothing to include. Name the LoRAs with --teacher-lora, "
            "or leave it out."
        )
    if len(asked) > MAX_RECORDS:
        raise SettingsError(
            f"{len(asked)} teacher LoRAs were given; at most {MAX_RECORDS} are possible."
        )
    if not asked:
        return request
    loras = [_open(item) for item in asked]
    _refuse_twice(loras)
    if request.include_teacher_loras:
        for lora in loras:
            _refuse_text_encoders(lora)
            _refuse_differences(lora)
    parts, encoders = find_components(Path(request.model.checkpoint), text_encoders)
    plan_merge(loras, parts.denoiser, encoders, family(parts.detection.family))
    named = [
        dataclasses.replace(item, sha256=lora.sha256)
        for item, lora in zip(asked, loras, strict=True)
    ]
    return dataclasses.replace(request, teacher_loras=tuple(named))


def open_teacher_loras(request: DistillRequest) -> list[MergingLora]:
    """The LoRAs of a run, as they were when it began.

    Raises:
        LoraError: a file is missing or damaged.
        RunError: a file is not the one that the run began with.
    """
    loras = []
    for item in request.teacher_loras:
        path = Path(item.path)
        if not path.is_file():
            raise LoraError(
                f"There is no LoRA file {path}, which this run merges into its teacher. Put it "
                "back there, or start a new run."
            )
        lora = _open(item)
        if item.sha256 and lora.sha256 != item.sha256:
            raise RunError(
                f"{path} has changed since this run began: its SHA256 is {lora.sha256[:10]}..., it "
                f"was {item.sha256[:10]}.... Put the former file back, or start a new run."
            )
        loras.append(lora)
    return loras


def _open(item: TeacherLora) -> MergingLora:
    """The LoRA, if it can be part of a teacher at all."""
    if item.strength == 0:
        raise LoraError(
            f"{Path(item.path).name} at strength 0 changes nothing. Leave it out, or give another "
            f"strength, such as {item.path}:0.8."
        )
    if not -MAX_STRENGTH <= item.strength <= MAX_STRENGTH:
        raise LoraError(
            f"{Path(item.path).name}: strength {item.strength:g} is outside -{MAX_STRENGTH} to "
            f"{MAX_STRENGTH}."
        )
    lora = open_merging(Path(item.path), item.strength)
    refuse_few_step(lora.file.contents)
    return lora


def _refuse_twice(loras: Sequence[MergingLora]) -> None:
    seen: dict[str, MergingLora] = {}
    for lora in loras:
        first = seen.setdefault(lora.sha256, lora)
        if first is not lora:
            names = " and ".join(dict.fromkeys((str(first.file.path), str(lora.file.path))))
            total = first.strength + lora.strength
            raise LoraError(
                f"The same LoRA was given twice: {names}. Give it once; {first.strength:g} and "
                f"{lora.strength:g} together are strength {total:g}."
            )


def _refuse_text_encoders(lora: MergingLora) -> None:
    keys = lora.file.text_encoder_keys
    if keys:
        raise LoraError(
            f"{lora.name} changes text encoders, too ({len(keys)} tensors such as {keys[0]!r}), "
            "which a few-step LoRA cannot include: hosts would give that part a strength of its "
            "own. Leave out --include-teacher-loras and load it beside the new LoRA, or give a "
            "copy of it without those tensors."
        )


def _refuse_differences(lora: MergingLora) -> None:
    keys = lora.file.contents.differences
    if keys:
        raise LoraError(
            f"{lora.name} changes whole weights or biases ({len(keys)} tensors such as "
            f"{keys[0]!r}), which a few-step LoRA cannot include: it holds products of low rank "
            "alone. Leave out --include-teacher-loras and load it beside the new LoRA."
        )


def merged_records(loras: Sequence[MergingLora], *, included: bool) -> tuple[MergedLora, ...]:
    """What the recipe says of the LoRAs."""
    return tuple(
        MergedLora(
            name=lora.name,
            strength=lora.strength,
            sha256=lora.sha256,
            autov3=lora.autov3,
            included=included,
        )
        for lora in loras
    )


@dataclasses.dataclass(frozen=True)
class IncludedLoras:
    """What the written LoRA holds besides the student, by module, in the order of merging.

    Attributes:
        pairs: of each module that some LoRA changes.
        shapes: of these modules' weights.
    """

    pairs: Mapping[str, Sequence[LoraPair]]
    shapes: Mapping[str, torch.Size]

    def beside(self, student: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
        """The student's pairs and these, exactly: ranks lie side by side in one pair a module."""
        joined = dict(student)
        for module, pairs in self.pairs.items():
            own = [student[module]] if module in student else []
            joined[module] = concatenated([*own, *pairs], self.shapes[module])
        return joined


def included_loras(loras: Sequence[MergingLora], checkpoint: LoadedCheckpoint) -> IncludedLoras:
    """The denoiser's part of the LoRAs; to be called before adapters are added to the network."""
    shapes = parameter_shapes(checkpoint.network)
    pairs: dict[str, list[LoraPair]] = {}
    for lora in loras:
        _refuse_differences(lora)
        deltas = lora_deltas(lora.file, checkpoint.family, checkpoint.config, shapes, lora.strength)
        for parameter, update in deltas.items():
            assert isinstance(update, LoraPair)
            pairs.setdefault(parameter.removesuffix(".weight"), []).append(update)
    return IncludedLoras(pairs, {module: shapes[f"{module}.weight"] for module in pairs})
