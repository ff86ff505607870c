"""Saving and restoring all that an exact resume needs: adapters, optimizers, average, step.

Prompts, noise, noise levels and learning rates are pure functions of seed and step, so no random
state and no scheduler state has to be kept. Tensors are safetensors, the rest is JSON; no pickles.
What decides the numbers of a run is hashed beside them: a resume must find the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...app.config.distill_config import LATER, DistillConfig
from ...app.runs.directory import RunDirectory
from ...core.errors import NonFiniteError, OutputError, RunError
from ...core.files.hashes import file_sha256
from ...core.recipe.recipe import MergedLora
from ..device import DTYPES, dtype_name
from ..loading.checkpoint import Checkpoint
from ..loading.weights import is_finite
from ..model.loss_scale import LossScale
from ..model.roles import AdapterRoles
from ..text.cache import encoder_identity
from .optimizers import AdapterOptimizer

log = logging.getLogger("dpdmd_studio.training")

# Settings that change how a run is done but not what it computes.
MACHINE_SETTINGS = (
    "device",
    "offload_base",
    "attention",
    "gradient_checkpointing",
    "micro_batch_size",
    "offload_optimizer",
    "fit_memory",
    "save_every",
    "preview_every",
    "evaluate_every",
    "evaluation_prompts",
    "keep",
)

# Settings that came later, with what was done before them: runs from then go on.
EARLIER = LATER | {
    "zero_terminal_snr": "auto",
    "optimizer": "adamw",
    "base_weights": "keep",
}


@dataclass(frozen=True)
class Learned:
    """What the updates of a run have changed so far; an exact resume needs all of it.

    Attributes:
        optimizers: by role.
        average: the student's moving average by name, where one is kept.
        scales: the losses' factors by role, in float16 alone.
    """

    roles: AdapterRoles
    optimizers: dict[str, AdapterOptimizer]
    average: dict[str, Tensor] | None
    scales: Mapping[str, LossScale]


def save_state(
    run: RunDirectory, step: int, fingerprint: str, learned: Learned, dtype: torch.dtype
) -> None:
    """Write the state after student update `step` into the run, whole or not at all.

    Args:
        dtype: of the frozen network; a resume goes on in it.

    Raises:
        OutputError: it cannot be written; a full disk reaches us as a SafetensorError.
        NonFiniteError: it holds NaN or infinity, from which no run could go on.
    """
    with run.new_state(step) as folder:
        try:
            for name, content in _tensors(learned):
                if not _all_finite(content):
                    raise NonFiniteError(_no_numbers(step, name.replace("-", "'s ")))
                save_file(content, folder / f"{name}.safetensors")
        except SafetensorError as error:
            raise OutputError(
                f"The state of update {step} could not be saved in {run.states}: {error}. Free "
                "some space there, then resume the run."
            ) from error
        facts: dict[str, Any] = {
            "step": step,
            "fingerprint": fingerprint,
            "dtype": dtype_name(dtype),
        }
        if learned.scales:
            facts["loss_scales"] = {role: s.to_dict() for role, s in learned.scales.items()}
        (folder / "state.json").write_text(json.dumps(facts), encoding="utf-8")


def _tensors(learned: Learned) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(file name, tensors) of a state, made one after the other."""
    for role, optimizer in learned.optimizers.items():
        yield role, learned.roles.state(role)
        yield f"{role}-optimizer", optimizer.tensors(_names(learned.roles, role))
    if learned.average is not None:
        yield "average", learned.average


def load_state(folder: Path, fingerprint: str, learned: Learned) -> int:
    """Restore a state saved by `save_state` into `learned`; returns its step.

    Raises:
        RunError: the state is damaged, cannot be read, or belongs to other settings.
    """
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step = facts.get("step") if isinstance(facts, dict) else None
        if type(step) is not int or step < 0:
            raise ValueError("its state.json does not say after which update")
        if facts["fingerprint"] != fingerprint:
            raise RunError(
                f"{folder} was made with other settings, prompts or LoRAs, or another checkpoint "
                "than the run now has. Undo the change, or start a new run."
            )
        for role, optimizer in learned.optimizers.items():
            learned.roles.load_state(role, _finite(load_file(folder / f"{role}.safetensors")))
            saved = _finite(load_file(folder / f"{role}-optimizer.safetensors"))
            optimizer.load(_names(learned.roles, role), saved)
        if learned.average is not None:
            # a map of a file that will go away
            saved = _finite(load_file(folder / "average.safetensors"))
            if _shapes(saved) != _shapes(learned.average):
                raise ValueError("its average is of other tensors")
            learned.average.update({name: value.clone() for name, value in saved.items()})
        if "loss_scales" in facts:  # not in states of versions before, whose factor stayed
            for role, scale in learned.scales.items():
                scale.load(facts["loss_scales"][role])
        return step
    except OSError as error:
        raise RunError(
            f"The saved state {folder} cannot be read ({error}). See that its drive is there and "
            "its files may be read, then resume. If it is lost, delete that folder to resume from "
            "the state before it."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise RunError(
            f"The saved state {folder} is damaged ({error}). Delete that folder to resume from "
            "the state before it."
        ) from error


def _no_numbers(step: int, what: str) -> str:
    return (
        f"After update {step} the {what} holds NaN or infinity, so that state is not saved. Resume "
        "the run: it goes on from the state before it, or begins anew where there is none. If that "
        "happens again, start a new run with a lower learning rate, or with --dtype float32; if it "
        "comes at another update each time, the device itself makes mistakes (clocked too high)."
    )


def _finite(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was saved; ValueError if that is no numbers, as versions before this may have left."""
    if not _all_finite(saved):
        raise ValueError("it holds NaN or infinity")
    return saved


def _all_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(is_finite(value) for value in tensors.values())


def saved_dtype(run: RunDirectory) -> str | None:
    """The number format of the run's newest state; "" if it does not say; None without a state.

    Versions before this did not say, and took what the device is usually given.
    """
    folder = run.latest_state()
    if folder is None:
        return None
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""  # said when it is loaded
    name = facts.get("dtype") if isinstance(facts, dict) else None
    return name if isinstance(name, str) and name in DTYPES else ""


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _names(roles: AdapterRoles, role: str) -> list[str]:
    """Names of an adapter's tensors, in the optimizer's order."""
    return [name for name, _ in roles.named_parameters(role)]


def checkpoint_identity(path: Path) -> str:
    """SHA256 of a checkpoint file; of the names and SHA256 of all weights in a folder."""
    log.info("Computing the checkpoint's SHA256 (it goes into the LoRA's metadata)")
    if path.is_file():
        return file_sha256(path)
    files = sorted(path.rglob("*.safetensors"))
    facts = [(f.relative_to(path).as_posix(), file_sha256(f)) for f in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def run_fingerprint(
    config: DistillConfig,
    prompts: list[str],
    checkpoint_sha256: str,
    checkpoint: Checkpoint,
    merged: Sequence[MergedLora] = (),
) -> str:
    """Hash of all that decides what a run computes; a resume must find the same one."""
    settings = dataclasses.asdict(config)
    for name in MACHINE_SETTINGS:
        settings.pop(name)
    for name, before in EARLIER.items():
        if settings[name] == before:
            settings.pop(name)
    encoders = {name: encoder_identity(part) for name, part in checkpoint.encoders.items()}
    facts = [settings, prompts, checkpoint_sha256, encoders, str(checkpoint.dtype)]
    if merged:  # runs without stay what they were
        facts.append([[lora.sha256, lora.strength] for lora in merged])
    content = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
