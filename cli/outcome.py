"""What the commands that train print at their end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..app.environment.launched import place

if TYPE_CHECKING:
    from ..trainer.commands.distill import Outcome

PROGRAM = "dpdmd-studio"


def print_outcome(outcome: Outcome, folder: Path, as_json: bool) -> None:
    """Say how a run ended and how to go on; of several processes the first does.

    Args:
        folder: the run's.
    """
    if not place().is_main:
        return
    if as_json:
        facts = {"lora": str(outcome.lora), "run": str(folder), "step": outcome.step,
                 "finished": outcome.finished}  # fmt: skip
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    state = "Finished" if outcome.finished else "Stopped"
    sys.stdout.write(f"{state} after {outcome.step} updates: {outcome.lora}\n")
    if not outcome.finished:
        sys.stdout.write(f'Go on with: {_program()} resume "{folder}"\n')


def _program() -> str:
    """How this program was called, for commands that a person may copy."""
    called = Path(sys.argv[0])
    if called.stem == PROGRAM:
        return PROGRAM
    return f'{Path(sys.executable).stem} "{Path(__file__).absolute().parents[1]}"'
