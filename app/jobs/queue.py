"""The order of waiting jobs. Each keeps its own place, so the queue is what the folders say.

The file `queued` of a job holds a number; lower ones run first. Moving a job writes that one file,
so whatever is cut short leaves a whole queue.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...core.errors import RunError
from ...core.files import atomic_write
from ..runs.lock import remove
from .files import QUEUED, job_folder, job_folders, jobs_guard, number

LAST = 1e300  # where a damaged place counts: at the end


def waiting() -> list[Path]:
    """Folders of the queued jobs, the next one first."""
    found = [(place_number(folder), folder.name, folder) for folder in job_folders()]
    return [folder for place, _, folder in sorted(f for f in found if f[0] is not None)]


def place_number(folder: Path) -> float | None:
    """The number in a job's `queued` file; None if it is not queued."""
    try:
        text = (folder / QUEUED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return LAST if (folder / QUEUED).exists() else None
    try:
        return number(json.loads(text), LAST)
    except (ValueError, RecursionError):
        return LAST


def enqueue(folder: Path, *, first: bool = False) -> None:
    """Put a job at the end of the queue, or at its beginning; to be called under the guard."""
    numbers = [n for n in map(place_number, waiting()) if n is not None and n < LAST]
    place = (min(numbers, default=0.0) - 1) if first else (max(numbers, default=0.0) + 1)
    _write(folder, place)


def dequeue(folder: Path) -> None:
    """Take a job out of the queue; to be called under the guard."""
    remove(folder / QUEUED)


def move(id: str, place: int) -> None:
    """Put a queued job at a place, counted from 0; beyond the end means last.

    Raises:
        RunError: there is no such job, or it does not wait in the queue.
    """
    folder = job_folder(id)
    with jobs_guard():
        order = waiting()
        if folder not in order:
            raise RunError(f"{id} does not wait in the queue, so it has no place there.")
        order.remove(folder)
        place = max(0, min(int(place), len(order)))
        numbers = [place_number(other) or 0.0 for other in order]
        if not numbers:
            return
        before = numbers[place - 1] if place else numbers[0] - 2
        after = numbers[place] if place < len(numbers) else numbers[-1] + 2
        middle = before + (after - before) / 2
        if before < middle < after < LAST:
            _write(folder, middle)
            return
        order.insert(place, folder)
        for count, other in enumerate(order, 1):
            _write(other, float(count))


def _write(folder: Path, place: float) -> None:
    atomic_write.write_text(folder / QUEUED, json.dumps(place))
