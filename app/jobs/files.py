"""The files of a job besides those of a run, and where jobs are.

A job is a directory in the folder `runs` of the data folder. Besides what a run keeps (see
`runs.directory`) it may hold:

    task.json      a job that is no distillation: its kind and its command line
    job.json       the title, for people
    queued         it waits in the queue; the number in it says where
    taken.json     the worker process that runs it: a lock
    child.json     the process that does the work, see `process_identity`
    exit.json      how that process ended, see `exit_note`
    output.txt     what a task printed as its result
    log.txt        what it said, start after start
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import OutputError, RunError
from ...core.files import atomic_write
from ..library.home import home, new_run_folder
from ..runs.lock import guard
from ..runs.tables import finite, read_json

TASK_VERSION = 1
SETTINGS, TASK, JOB, QUEUED = "settings.json", "task.json", "job.json", "queued"
TAKEN, CHILD, LOG, OUTPUT = "taken.json", "child.json", "log.txt", "output.txt"
LOCK, STOP, PROGRESS, RESULT = "lock.json", "stop", "progress.json", "result.json"
MAX_ID_CHARACTERS = 150
MAX_TITLE_CHARACTERS = 200


def runs() -> Path:
    """Where the jobs are."""
    return home() / "runs"


def trash() -> Path:
    """Where deleted jobs are."""
    return home() / "trash"


def jobs_guard() -> contextlib.AbstractContextManager[None]:
    """Be alone in changing the queue and in deciding what a job may become."""
    with atomic_write.explained(runs()):
        runs().mkdir(parents=True, exist_ok=True)
    return guard(runs() / "queue")


def job_folder(id: str, *, inside: Path | None = None) -> Path:
    """The folder of a job that exists.

    Args:
        inside: the folder to look in; by default that of the jobs.

    Raises:
        RunError: there is none, or the id cannot be the name of a folder inside, on any system.
    """
    forbidden = '/\\:*?"<>|'
    if (
        not isinstance(id, str)
        or not 0 < len(id) <= MAX_ID_CHARACTERS
        or id.startswith(".")
        or id.endswith((".", " "))
        or any(c in forbidden or not c.isprintable() for c in id)
    ):
        raise RunError(
            f"{str(id)[:80]!r} is not the name of a run: expected a folder name of up to "
            f"{MAX_ID_CHARACTERS} characters, as `dpdmd-studio runs` lists them."
        )
    folder = (inside or runs()) / id
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(
            f"There is no run {id} in {folder.parent}. It may have been deleted or moved meanwhile."
        )
    return folder


def job_folders() -> list[Path]:
    """The folders of all jobs; hidden ones are jobs being made, links are nobody's."""
    try:
        entries = [entry for entry in os.scandir(runs()) if not entry.name.startswith(".")]
        return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    atomic_write.write_text(path, json.dumps(content, indent=1))


def number(value: Any, default: float = 0.0) -> float:
    """A finite number out of a file that may hold anything."""
    found = finite(value)
    return default if found is None else found


def clean_title(text: str) -> str:
    """A title on one line, without control characters, not too long."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(plain.split())[:MAX_TITLE_CHARACTERS]


@contextlib.contextmanager
def draft_folder() -> Iterator[Path]:
    """A new hidden folder in which a job is made; gone afterwards unless it was published."""
    folder = runs() / f".new-{os.getpid()}-{time.time_ns()}"
    with atomic_write.explained(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folders_that_write(output: str) -> Iterator[Path]:
    """Folders of the jobs whose settings name this file as their output."""
    aim = os.path.normcase(output)
    for folder in job_folders():
        found = read_json(folder / SETTINGS).get("output")
        if isinstance(found, str) and os.path.normcase(found) == aim:
            yield folder


def publish(draft: Path, name: str) -> Path:
    """Turn a draft into a job, all at once; returns its folder, named by date, time and `name`."""
    while True:
        folder = new_run_folder(name[:80])
        try:
            os.rename(draft, folder)
            return folder
        except OSError as error:
            if not folder.exists():  # not merely made by another at this moment
                raise OutputError(f"The run folder {folder} cannot be made: {error}.") from error
