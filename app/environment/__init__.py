"""The worker's environment: where it is, what it holds, and how a command gets into it.

Standard library only: this runs in hosts' interpreters and before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
REQUIREMENTS = ROOT / "app" / "environment"


@dataclass(frozen=True)
class RequirementSet:
    """A pinned set of packages that was tried together, and the newest Python it was tried on."""

    file: Path
    newest: tuple[int, int]
    torch_floor: tuple[int, int]

    @property
    def torch(self) -> str:
        """The torch that was tried with the set, as a requirement."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("torch=="))

    @property
    def digest(self) -> str:
        """Fingerprint of the pins, to notice that an update changed them."""
        return digest_of(self.file)


SETS = (
    RequirementSet(REQUIREMENTS / "requirements-python310.txt", (3, 10), (2, 6)),
    RequirementSet(REQUIREMENTS / "requirements-current.txt", (3, 13), (2, 6)),
)
TEST_REQUIREMENTS = REQUIREMENTS / "requirements-test.txt"
EIGHT_BIT_REQUIREMENTS = REQUIREMENTS / "requirements-8bit.txt"


def digest_of(file: Path) -> str:
    """Fingerprint of a text file, whatever its line ends."""
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


def requirement_set(version: tuple[int, int]) -> RequirementSet:
    """The set for a Python version; a Python newer than all gets the newest set."""
    return next((one for one in SETS if version <= one.newest), SETS[-1])


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cu130"; (0, 0) when it is not one."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True)
class Environment:
    """One environment: a venv, or a plain folder of packages where `venv` is missing."""

    home: Path

    @property
    def packages(self) -> Path:
        """The folder of packages, for a Python that cannot make a venv."""
        return self.home / "packages"

    @property
    def state_file(self) -> Path:
        """What the set-up has finished so far."""
        return self.home / "dpdmd_studio.json"

    @property
    def venv_python(self) -> Path:
        """The interpreter that a venv at this place has."""
        if os.name == "nt":
            return self.home / "Scripts" / "python.exe"
        return self.home / "bin" / "python"

    def state(self) -> dict[str, str]:
        """The recorded facts; empty when nothing was set up or the record is unreadable."""
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def record(self, **facts: str) -> None:
        """Add facts to the record, in one replace."""
        state = self.state() | facts
        self.home.mkdir(parents=True, exist_ok=True)
        draft = self.state_file.with_suffix(".new")
        draft.write_text(json.dumps(state, indent=1), encoding="utf-8")
        os.replace(draft, self.state_file)

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor) of its Python; (0, 0) when that is not recorded."""
        return release(self.state().get("version", ""))

    @property
    def is_folder(self) -> bool:
        """Whether this is a plain folder of packages, not a venv."""
        return self.state().get("kind") == "folder"

    @property
    def python(self) -> Path:
        """The interpreter that runs the worker."""
        return Path(self.state()["python"]) if self.is_folder else self.venv_python

    @property
    def is_ready(self) -> bool:
        """Whether a set-up has finished here and its interpreter is still there."""
        return self.state().get("ready") == "yes" and self.python.exists()

    @property
    def is_active(self) -> bool:
        """Whether the running interpreter is this environment's own."""
        if self.is_folder:
            return str(self.packages) in sys.path
        return Path(sys.prefix).resolve() == self.home.resolve()

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs Python with `arguments` inside this environment."""
        if self.is_folder:
            boot = Path(__file__).with_name("boot.py")
            return [str(self.python), "-I", str(boot), str(self.packages), *arguments]
        return [str(self.python), *arguments]

    def variables(self) -> dict[str, str]:
        """The process environment for `command`, free of what hosts put into it."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        return kept | {"PYTHONNOUSERSITE": "1"}


WORKER = Environment(ROOT / ".venv")
