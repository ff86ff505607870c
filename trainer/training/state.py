"""Saving and restoring all that an exact resume needs: adapters, optimizers, average, step.

Prompts, noise, noise levels and learning rates are pure functions of seed and step, so no random
state and no scheduler state has to be kept. Tensors are safetensors, the rest is JSON; no pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...app.runs.directory import RunDirectory
from ...core.errors import OutputError, RunError
from ..model.roles import AdapterRoles
from .optimizers import AdapterOptimizer


@dataclass(frozen=True)
class Learned:
    """What the updates of a run have changed so far; an exact resume needs all of it.

    Attributes:
        optimizers: by role.
        average: the student's moving average by name, where one is kept.
    """

    roles: AdapterRoles
    optimizers: dict[str, AdapterOptimizer]
    average: dict[str, Tensor] | None


def save_state(run: RunDirectory, step: int, fingerprint: str, learned: Learned) -> None:
    """Write the state after student update `step` into the run, whole or not at all.

    Raises:
        OutputError: it cannot be written; a full disk reaches us as a SafetensorError.
    """
    with run.new_state(step) as folder:
        try:
            for name, content in _tensors(learned):
                save_file(content, folder / f"{name}.safetensors")
        except SafetensorError as error:
            raise OutputError(
                f"The state of update {step} could not be saved in {run.states}: {error}. Free "
                "some space there, then resume the run."
            ) from error
        facts = {"step": step, "fingerprint": fingerprint}
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
        RunError: the state is damaged, or belongs to other settings.
    """
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if facts["fingerprint"] != fingerprint:
            raise RunError(
                f"{folder} was made with other settings, prompts or LoRAs, or another checkpoint "
                "than the run now has. Undo the change, or start a new run."
            )
        for role, optimizer in learned.optimizers.items():
            learned.roles.load_state(role, load_file(folder / f"{role}.safetensors"))
            saved = load_file(folder / f"{role}-optimizer.safetensors")
            optimizer.load(_names(learned.roles, role), saved)
        if learned.average is not None:
            saved = load_file(folder / "average.safetensors")  # a map of a file that will go away
            learned.average.update({name: value.clone() for name, value in saved.items()})
        return int(facts["step"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"The saved state {folder} is damaged ({error}). Delete that folder to resume from "
            "the state before it."
        ) from error


def _names(roles: AdapterRoles, role: str) -> list[str]:
    """Names of an adapter's tensors, in the optimizer's order."""
    return [name for name, _ in roles.named_parameters(role)]
