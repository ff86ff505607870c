"""Whether training can start on this computer, and the command that makes it so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

from . import ROOT, WORKER, Environment, release, requirement_set
from .torch_source import FoundTorch

ENGINE_LIBRARIES = {"torch": (2, 6), "diffusers": (0, 41), "transformers": (5, 20), "peft": (0, 21)}
"""Name -> oldest release with which the trainer runs; hosts bring older ones of the same names."""


def missing_libraries() -> list[str]:
    """What this interpreter lacks to run the trainer itself, as words for a message."""
    lacked = (_lacked(name, oldest) for name, oldest in ENGINE_LIBRARIES.items())
    return [words for words in lacked if words]


def _lacked(name: str, oldest: tuple[int, int]) -> str:
    """ "" if that library is here and not too old."""
    if importlib.util.find_spec(name) is None:
        return name
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""  # it is no distribution: nothing is known against it
    if release(found) >= oldest:
        return ""
    return f"{name} {oldest[0]}.{oldest[1]} or newer (it has {found})"


def is_ready(environment: Environment | None = None) -> bool:
    """Whether a run would find all it needs, in the environment or in this interpreter."""
    environment = environment or WORKER
    if environment.is_ready:
        return lender_is_there(environment)
    return not missing_libraries()


def lender_is_there(environment: Environment) -> bool:
    """Whether the PyTorch that the environment borrows is still there; true if it has its own."""
    state = environment.state()
    lender = state.get("torch from")
    return not lender or FoundTorch(state.get("torch lent", ""), Path(lender)).still_there()


def is_outdated(environment: Environment | None = None) -> bool:
    """Whether an update of the project changed the pins since the environment was made."""
    environment = environment or WORKER
    if not environment.is_ready:
        return False
    version = environment.version
    return version == (0, 0) or environment.state().get("pins") != requirement_set(version).digest


def setup_command() -> str:
    """The command line that sets the trainer up, for a terminal of this system."""
    words = [sys.executable, str(ROOT / "install.py"), "setup"]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
