"""The preview images of a run: what is there, by name, and nothing else of its folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TEACHER = "teacher.png"
STEP = re.compile(r"step-(\d{1,12})\.png", re.ASCII)


@dataclass(frozen=True)
class Preview:
    """One image; `step` is the student's finished updates, 0 for the teacher's."""

    path: Path
    step: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.path.name

    @property
    def is_teacher(self) -> bool:
        """Whether it shows the teacher."""
        return self.name == TEACHER


def student_previews(run: Path) -> list[Preview]:
    """The student's sheets in a run's folder, oldest first."""
    found = [(STEP.fullmatch(path.name), path) for path in _images(run)]
    sheets = [Preview(path, int(match[1])) for match, path in found if match]
    return sorted(sheets, key=lambda sheet: sheet.step)


def previews(run: Path) -> list[Preview]:
    """The teacher's sheet, if it is there, and the student's, oldest first."""
    teacher = [Preview(path, 0) for path in _images(run) if path.name == TEACHER]
    return teacher + student_previews(run)


def _images(run: Path) -> list[Path]:
    try:
        found = list((run / "previews").iterdir())
    except OSError:
        return []
    return [path for path in found if path.suffix == ".png" and not path.is_symlink()]
