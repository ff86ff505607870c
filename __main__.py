"""`python -m dpdmd_studio …` and `python <checkout> …`: the command line, from any interpreter.

Commands that train or sample need the worker's environment (`.venv` in the checkout, made by
`install.py`). When another interpreter is asked, it hands the command over to that environment.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import MutableMapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# these need no engine, so they run on any Python; the second kind where the library of locks is
LIGHT_COMMANDS = ("inspect",)
LOCKING_COMMANDS = ("runs", "work")
SPINS = "1000"


def needs_worker(arguments: list[str]) -> bool:
    """Whether the command needs more than this interpreter is sure to have, mostly the trainer."""
    if not arguments or {"-h", "--help", "--version"} & set(arguments):
        return False
    if arguments[0] in LOCKING_COMMANDS:
        return importlib.util.find_spec("filelock") is None
    return arguments[0] not in LIGHT_COMMANDS


def share_cores(variables: MutableMapping[str, str]) -> None:
    """Let OpenMP's waiting threads sleep soon, unless somebody has said how they wait.

    GNU's runtime spins for milliseconds instead, which costs nothing alone; beside another busy
    program on two cores an update of the demo took 51 s in place of 1.4 (alone .51 and .59).
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(variables):
        variables["GOMP_SPINCOUNT"] = SPINS


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line `argv` (default: this process's own arguments)."""
    arguments = list(sys.argv[1:]) if argv is None else list(argv)
    share_cores(os.environ)  # read when torch is loaded, here or in another interpreter
    # `python <checkout>` puts our folder on sys.path, where `core` and `trainer` would answer to
    # a second name.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ROOT]
    runpy.run_path(str(ROOT / "mount.py"))
    from dpdmd_studio.app.environment.streams import open_missing

    open_missing()
    if needs_worker(arguments):
        from dpdmd_studio.app.environment import handover

        status = handover.hand_over(arguments)
        if status is not None:
            return status
    from dpdmd_studio.cli import main as run_command

    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
