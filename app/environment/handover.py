"""Hands a command over to the worker's environment when another interpreter was asked."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from . import ROOT, WORKER, Environment
from .boot import enter
from .packages import run_inside
from .readiness import is_outdated, lender_is_there, missing_libraries

HANDED_OVER = "DPDMD_HANDED_OVER"
_log = logging.getLogger("dpdmd_studio.environment")


def hand_over(arguments: list[str], environment: Environment = WORKER) -> int | None:
    """Exit status of the command run in the worker's environment; None: go on right here."""
    if environment.is_ready:
        if not lender_is_there(environment):
            lender = environment.state().get("torch from")
            sys.stderr.write(
                f"error: the PyTorch that was borrowed from {lender} has gone or changed. "
                f'Run: {Path(sys.executable).name} "{ROOT / "install.py"}" setup\n'
            )
            return 2
        warn_when_outdated(environment)
        if environment.is_active or os.environ.pop(HANDED_OVER, None):
            return None
        if environment.is_folder and same_interpreter(environment):
            enter(environment.packages)
            return None
        return run_elsewhere(environment, arguments)
    missing = missing_libraries()
    if not missing:
        return None
    sys.stderr.write(
        f"error: the training environment is not set up: {sys.executable} lacks "
        f"{', '.join(missing)}, and {environment.home} does not exist or is incomplete. "
        f'Run: {Path(sys.executable).name} "{ROOT / "install.py"}" setup\n'
    )
    return 2


def warn_when_outdated(environment: Environment) -> None:
    """Say so when an update of the project changed the pins."""
    if is_outdated(environment):
        _log.warning(
            "the training environment is older than this version; `python install.py setup` "
            "brings it up to date"
        )


def same_interpreter(environment: Environment) -> bool:
    """Whether this is the interpreter that the folder of packages was made for."""
    return Path(sys.executable).resolve() == environment.python.resolve()


def run_elsewhere(environment: Environment, arguments: list[str]) -> int:
    """Exit status of the same command line under the environment's interpreter."""
    os.environ[HANDED_OVER] = "1"
    if os.name == "posix":  # become that process, so that signals reach it
        command = environment.command(str(ROOT), *arguments)
        os.execve(command[0], command, environment.variables())
    return run_inside(environment, str(ROOT), *arguments)
