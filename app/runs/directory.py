"""A run is a directory: settings, state, metrics, previews, checkpoints and the result.

Every front end writes the settings and reads the rest; the worker does the rest. Nothing here needs
torch. Layout:

    settings.json          what was asked for, and of which checkpoint
    prompts.txt            the prompts as given, after comments and tags were taken out
    progress.json          status, step, losses, time left: rewritten as the run goes
    evaluation-prompts.txt held-out prompts: the student is measured on them, never trained
    unprepared             made without the trainer: its checks are still to be done
    given-prompts.txt      all prompts of such a run, from which some are to be held out
    metrics.jsonl          one line per student update
    evaluations.jsonl      one line per measurement: diversity and distance from the teacher
    state/step-00000100/   adapters, optimizers, step: all that an exact resume needs
    checkpoints/           loadable LoRAs of saved steps
    previews/              images on fixed seeds
    evaluation/            the teacher's images that the student is measured against
    report/                the report at the end: report.html, report.json, image sheets
    memory.json            the memory fallbacks that the run has taken
    attention.json         the attention kernels that an earlier version had timed for the run
    stop                   a request: stop at the next update and keep what there is
    lock.json              which process owns the run, see `run_lock`
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import OutputError, RunError
from ...core.files import atomic_write
from .lock import owned
from .tables import finite

SETTINGS_VERSION = 1
KEPT_STATES, KEPT_CHECKPOINTS = 2, 5
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
PROMPTS, EVALUATION_PROMPTS = "prompts.txt", "evaluation-prompts.txt"
GIVEN_PROMPTS, UNPREPARED = "given-prompts.txt", "unprepared"
# What --overwrite removes, with the folders below; other files in the folder are not ours.
RUN_FILES = (
    "settings.json", PROMPTS, EVALUATION_PROMPTS, GIVEN_PROMPTS, UNPREPARED, "progress.json",
    METRICS, EVALUATIONS, "result.json", "memory.json", "attention.json", "stop",
)  # fmt: skip


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.states = self.path / "state"
        """Folder of resumable states."""
        self.previews = self.path / "previews"
        """Folder of preview images."""
        self.checkpoints = self.path / "checkpoints"
        """Folder of loadable LoRAs."""
        self.evaluation = self.path / "evaluation"
        """Folder of the teacher's images that the student is measured against."""
        self.report = self.path / "report"
        """Folder of the report."""
        self._made_at_once = self.states, self.previews, self.checkpoints

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        prompts: list[str],
        *,
        evaluation_prompts: Sequence[str] = (),
        overwrite: bool = False,
    ) -> RunDirectory:
        """A new run directory with its settings and prompts written.

        Raises:
            OutputError: there is a run already and `overwrite` is not set, or no place to write.
        """
        run = cls(path)
        try:
            if run.path.exists() and any(run.path.iterdir() if run.path.is_dir() else [run.path]):
                run._make_room(overwrite)
            run._make_folders()
        except OSError as error:
            raise OutputError(f"The run folder {path} cannot be made: {error}.") from error
        for name, texts in ((PROMPTS, prompts), (EVALUATION_PROMPTS, evaluation_prompts)):
            if texts:
                atomic_write.write_text(run.path / name, "\n".join(texts) + "\n")
        run.write_json("settings.json", {"version": SETTINGS_VERSION, **settings})
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run, or RunError saying what is missing."""
        run = cls(path)
        if not run._has("settings.json"):
            raise RunError(
                f"{path} is not a run: it has no settings.json. Name the folder that `distill` "
                "made (its path was printed when the run began)."
            )
        version = run.settings().get("version")
        if version != SETTINGS_VERSION:
            raise RunError(
                f"{path} was written in format {version}; this version reads format "
                f"{SETTINGS_VERSION}. Use the version of DP-DMD Studio that made the run."
            )
        return run

    def _make_room(self, overwrite: bool) -> None:
        is_run = all(self._has(name) for name in ("settings.json", PROMPTS))
        if not overwrite or not is_run:
            what = "a run" if is_run else "something that is not a run"
            remedy = "Add --overwrite to start it anew, or name another folder"
            raise OutputError(
                f"{self.path} holds {what} already. "
                f"{remedy if is_run else 'Name another folder'} with --run."
            )
        with self.lock():
            pass
        try:
            for name in RUN_FILES:
                (self.path / name).unlink(missing_ok=True)
            for folder in (*self._made_at_once, self.evaluation, self.report):
                if folder.is_dir():
                    shutil.rmtree(folder)
        except OSError as error:
            raise OutputError(
                f"The run in {self.path} cannot be removed: {error}. Close what has its files "
                "open, or name another folder with --run."
            ) from error

    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        return self.read_json("settings.json")

    def prompts(self) -> list[str]:
        """The prompts of the run, one a line."""
        return self._read_lines(PROMPTS)

    def evaluation_prompts(self) -> list[str]:
        """The held-out prompts for measurements; none in runs that are not measured."""
        return self._read_lines(EVALUATION_PROMPTS) if self._has(EVALUATION_PROMPTS) else []

    def given_prompts(self) -> list[str]:
        """All prompts of a run from which none have been held out yet."""
        return self._read_lines(GIVEN_PROMPTS)

    def _has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)  # a name that is too long is no file

    def _read_lines(self, name: str) -> list[str]:
        try:
            text = (self.path / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}.") from error
        return text.removesuffix("\n").split("\n")  # prompts may hold other line separators

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, or RunError if it is missing or damaged."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise RunError(f"{self.path / name} is not what this program writes: no JSON object.")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run atomically."""
        atomic_write.write_text(self.path / name, json.dumps(content, indent=2))

    # Metrics

    def append_metrics(self, line: Mapping[str, Any], name: str = METRICS) -> None:
        """Add one line to metrics.jsonl, or to another file of lines with a step."""
        path = self.path / name
        with atomic_write.explained(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def metrics(self, name: str = METRICS) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; one cut off by a crash, or damaged, is left out."""
        try:
            lines = (self.path / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(
                f"{self.path / name} cannot be read: {error}. Make it readable; or delete it: that "
                "loses these curves and nothing else."
            ) from error
        found = []
        for text in lines:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and finite(line.get("step")) is not None:
                    found.append(line)
        return found

    def truncate_metrics(self, step: int) -> None:
        """Drop lines after `step`: a resumed run writes them again."""
        for name in (METRICS, EVALUATIONS):
            kept = [json.dumps(line) for line in self.metrics(name) if line["step"] <= step]
            if kept or (self.path / name).exists():
                atomic_write.write_text(self.path / name, "".join(f"{k}\n" for k in kept))

    # State

    @contextlib.contextmanager
    def new_state(self, step: int) -> Iterator[Path]:
        """A folder to write a state into; it counts only once the block has succeeded."""
        final = self.states / f"step-{step:08d}"
        temporary = self.states / f".step-{step:08d}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        for old in self._state_folders()[: 1 - KEPT_STATES]:  # before, for they may be large
            shutil.rmtree(old, ignore_errors=True)
        try:
            with atomic_write.explained(final):
                temporary.mkdir(parents=True)
                yield temporary
                atomic_write.flush_files(temporary)
                shutil.rmtree(final, ignore_errors=True)
                atomic_write.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def latest_state(self) -> Path | None:
        """The newest whole state, if any."""
        folders = self._state_folders()
        return folders[-1] if folders else None

    def state_bytes(self) -> int:
        """What the newest state takes; 0 if there is none."""
        folder = self.latest_state()
        return sum(path.stat().st_size for path in folder.iterdir()) if folder else 0

    def _state_folders(self) -> list[Path]:
        found = self.states.glob("step-*") if self.states.is_dir() else ()
        return sorted(path for path in found if path.name.removeprefix("step-").isdecimal())

    # Requests and ownership

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked this run to stop."""
        return (self.path / "stop").exists()

    def clear_requests(self) -> None:
        """Forget requests of an earlier start."""
        (self.path / "stop").unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run while the block runs; RunError if a live process owns it already.

        Its folders are there afterwards: archives and git drop empty ones.
        """
        with owned(self.path / "lock.json"):
            with atomic_write.explained(self.path):
                self._make_folders()
            yield

    def _make_folders(self) -> None:
        for folder in self._made_at_once:
            folder.mkdir(parents=True, exist_ok=True)


class FollowedRun(RunDirectory):
    """A run as those of its processes see it that only help: read, never written."""

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Leave that to the first process."""

    def append_metrics(self, line: Mapping[str, Any], name: str = METRICS) -> None:
        """Leave that to the first process."""

    def truncate_metrics(self, step: int) -> None:
        """Leave that to the first process."""

    def clear_requests(self) -> None:
        """Leave that to the first process."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nothing: the first process owns the run."""
        yield
