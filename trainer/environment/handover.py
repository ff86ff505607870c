"""Hands a command over to the worker's environment when another interpreter was asked."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

from . import ROOT, WORKER, Environment, requirement_set
from .boot import enter
from .torch_source import FoundTorch

HANDED_OVER = "DPDMD_HANDED_OVER"
ENGINE_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
_log = logging.getLogger("dpdmd_studio.environment")


def hand_over(arguments: list[str], environment: Environment = WORKER) -> int | None:
    """Exit status of the command run in the worker's environment; None: go on right here."""
    if environment.is_ready:
        state = environment.state()
        lender = state.get("torch from")
        if lender and not FoundTorch(state.get("torch lent", ""), Path(lender)).still_there():
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
    missing = [name for name in ENGINE_LIBRARIES if importlib.util.find_spec(name) is None]
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
    state = environment.state()
    major, minor = map(int, state["version"].split("."))
    if state.get("pins") != requirement_set((major, minor)).digest:
        _log.warning(
            "the training environment is older than this version; `python install.py setup` "
            "brings it up to date"
        )


def same_interpreter(environment: Environment) -> bool:
    """Whether this is the interpreter that the folder of packages was made for."""
    return Path(sys.executable).resolve() == environment.python.resolve()


def run_elsewhere(environment: Environment, arguments: list[str]) -> int:
    """Exit status of the same command line under the environment's interpreter."""
    command = environment.command(str(ROOT), *arguments)
    variables = environment.variables() | {HANDED_OVER: "1"}
    if os.name == "posix":  # become that process, so that signals reach it
        os.execve(command[0], command, variables)
    process = subprocess.Popen(command, env=variables)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
