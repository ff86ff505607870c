"""What `check` found out about a checkpoint on this machine: a folder for each in the data folder.

check.json             figures of each finished part, and what was checked
check.md               the table, to be read and pasted
teacher.png            the teacher's images, with guidance
few-steps.png          the same seeds in a few steps without guidance
run/                   a run directory with the timed updates, and no saved state
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core.files import atomic_write
from ..config.request import DistillRequest
from ..library.home import home, plain_name
from .directory import METRICS, RunDirectory
from .previews import TEACHER, Preview
from .tables import read_json

VERSION = 1
FIGURES, TABLE, RUN = "check.json", "check.md", "run"
TEACHER_SHEET, FEW_STEPS_SHEET = TEACHER, "few-steps.png"
CHECKED_PROMPTS = 2
"""Prompts that are drawn: the first ones of those given."""
KEY_LETTERS, NAME_LETTERS = 10, 60


class CheckDirectory:
    """The files of one check."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, request: DistillRequest, prompts: Sequence[str]) -> CheckDirectory:
        """Where the check of these files with these settings is, whether or not it was begun."""
        named = {name: file for name, file in asdict(request.model).items() if file}
        facts = [
            VERSION,
            {name: _identity(Path(file)) for name, file in named.items()},
            [(_identity(Path(lora.path)), lora.strength) for lora in request.teacher_loras],
            request.config.to_file(),
            list(prompts),
        ]
        key = hashlib.sha256(json.dumps(facts).encode("utf-8", "replace")).hexdigest()
        name = plain_name(Path(request.model.checkpoint).stem)[:NAME_LETTERS]
        return cls(_folder() / f"{name}-{key[:KEY_LETTERS]}")

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path / RUN

    def figures(self) -> dict[str, Any]:
        """What each finished part found, by its name; none where the file is damaged."""
        found = read_json(self.path / FIGURES)
        parts = found.get("parts") if found.get("version") == VERSION else None
        if not isinstance(parts, dict):
            return {}
        return {name: part for name, part in parts.items() if isinstance(part, dict)}

    def note(self, parts: Mapping[str, Any]) -> None:
        """Write the figures of all parts so far.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.path / FIGURES
        with atomic_write.explained(path):
            self.path.mkdir(parents=True, exist_ok=True)
        atomic_write.write_text(path, json.dumps({"version": VERSION, "parts": parts}, indent=2))


def sheets(folder: object) -> list[Preview]:
    """The sheets of images of a check, the teacher's first; none unless it is one of ours.

    Args:
        folder: as a check's result names it; anything may stand there.
    """
    if not isinstance(folder, str) or Path(folder).parent != _folder().absolute():
        return []
    paths = [Path(folder) / name for name in (TEACHER_SHEET, FEW_STEPS_SHEET)]
    with contextlib.suppress(OSError):
        return [Preview(path, 0) for path in paths if path.is_file() and not path.is_symlink()]
    return []


def checked_runs() -> list[RunDirectory]:
    """The runs of all checks with timed updates, the newest first."""
    found = _folder().glob(f"*/{RUN}/{METRICS}")
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunDirectory(path.parent) for path in newest]


def _folder() -> Path:
    return home() / "checks"


def _identity(path: Path) -> list[Any]:
    """What changes when another model takes a file's place; its gigabytes are not read."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return [
        str(path.resolve()),
        *((f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()),
    ]
