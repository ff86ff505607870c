"""The first fifteen minutes on a device: whether a checkpoint can be distilled here, part by part.

A part's figures are kept once it is finished. The same checkpoint with the same settings goes on
where an earlier call was interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...app.config.distill_config import DistillConfig
from ...app.config.found_files import completed
from ...app.findings.checkup import Line, checkup_lines, checkup_table
from ...app.runs.checks import CHECKED_PROMPTS, TABLE, CheckDirectory
from ...app.runs.directory import RunDirectory
from ...app.runs.tables import duration
from ...core.errors import DPDMDError, NonFiniteError, RunError
from ...core.families import identify
from ...core.files import atomic_write
from ..device import (
    is_out_of_memory,
)
from ..toys import encoder
from ..toys.worlds import world_of
from .check_parts import CheckRequest, Checkup, Figures, NotMeasuredError, Part
from .device_lock import device_held
from .distill import create_run, prepare
from .run_status import Interrupt

PROMPTS = (
    "a photo of a red fox in a snowy forest",
    "a portrait of an old fisherman, oil painting",
)
MENTIONED_SECONDS = 5.0
LOADING_PASSES = 156
"""Passes from which on the time that is left can be told: loading alone tells nothing of it."""
log = logging.getLogger("dpdmd_studio.commands")


@dataclass(frozen=True)
class CheckResult:
    """What was found.

    Attributes:
        table: Markdown.
        folder: where it lies with the images.
        figures: of each part.
    """

    lines: list[Line]
    table: str
    folder: Path
    figures: Figures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {
            "folder": str(self.folder),
            "verdicts": {line.name: line.verdict for line in self.lines},
            "lines": [asdict(line) for line in self.lines],
            "table": self.table,
            "figures": self.figures,
        }


def check(request: CheckRequest) -> CheckResult:
    """Do the parts that are not done yet, and say what holds.

    Raises:
        DPDMDError: the checkpoint cannot be used at all, a setting does not suit it, or the device
            is in use.
    """
    encoder.register()
    request = _settled(request)
    folder = CheckDirectory.of(request.as_run(Path("unused")), request.prompts)
    parts = {} if request.again else folder.figures()
    work = Checkup(request, folder, parts)
    todo = [part for part in work.parts() if not _is_done(parts.get(part.name))]
    if todo:
        run = _run(request, folder, again=request.again)
        # a Ctrl-C ends the part at hand: what is finished is kept
        with run.lock(), device_held(run, Interrupt()):
            prepare(run)
            _do(todo, work, folder)
    return _result(request, folder, parts)


def _settled(request: CheckRequest) -> CheckRequest:
    """The request with its prompts, and without what a run does between its updates."""
    path = Path(request.model.checkpoint)
    world = None
    if path.exists():
        identify(path)  # one clear line where it is no model
        world = world_of(path)
    own = tuple(world.captions(True, CHECKED_PROMPTS, 0)) if world else PROMPTS
    model = completed(request.model)
    config = replace(request.config, evaluation_prompts=0, evaluate_every=0, preview_every=0)
    prompts = (request.prompts or own)[:CHECKED_PROMPTS]
    return replace(request, model=model, config=config.validate(), prompts=prompts)


def _is_done(found: Figures | None) -> bool:
    return found is not None and "error" not in found


def _run(request: CheckRequest, folder: CheckDirectory, *, again: bool) -> RunDirectory:
    """The run directory of the check, made unless it is there."""
    if not again:
        with contextlib.suppress(RunError):  # not there, or cut short when it was made
            return RunDirectory.open(folder.run)
    with atomic_write.explained(folder.path):
        shutil.rmtree(folder.run, ignore_errors=True)
        folder.path.mkdir(parents=True, exist_ok=True)
    asked = request.as_run(folder.path / "unused.safetensors")
    try:
        return create_run(folder.run, asked, list(request.prompts), overwrite=True)
    except DPDMDError:
        with contextlib.suppress(OSError):
            folder.path.rmdir()  # unless an earlier call has left something
        raise


def _do(todo: Sequence[Part], work: Checkup, folder: CheckDirectory) -> None:
    """Do the parts, and keep what each has found."""
    spent, done = 0.0, 0.0
    for number, part in enumerate(todo, 1):
        left = ""
        if done > LOADING_PASSES:
            seconds = spent / done * sum(other.weight for other in todo[number - 1 :])
            left = f", about {duration(seconds)} left" if seconds > MENTIONED_SECONDS else ""
        log.info("[%d/%d] %s%s", number, len(todo), part.title, left)
        started = time.perf_counter()
        work.figures[part.name] = _figures(part)
        spent, done = spent + time.perf_counter() - started, done + part.weight
        folder.note(work.figures)


def _figures(part: Part) -> Figures:
    """What a part found, or why it found nothing."""
    try:
        return part.work()
    except NotMeasuredError as error:
        return {"error": str(error)}
    except NonFiniteError as error:
        return {"error": str(error), "red": True}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"error": "the device has too little memory for it", "out_of_memory": True}


def _result(request: CheckRequest, folder: CheckDirectory, figures: Figures) -> CheckResult:
    lines = checkup_lines(figures, request.config)
    loaded = figures.get("loading", {})
    title = {
        "Checkpoint": Path(request.model.checkpoint).name,
        "Model": str(loaded.get("title", "not loaded")),
        "Device": str(loaded.get("device", "")),
        "Settings": _asked(request.config),
        "Version": f"DP-DMD Studio {__version__}, PyTorch {torch.__version__}",
    }
    table = checkup_table({k: v for k, v in title.items() if v}, lines, figures)
    atomic_write.write_text(folder.path / TABLE, table)
    return CheckResult(lines, table, folder.path, figures)


def _asked(config: DistillConfig) -> str:
    """The settings that are otherwise than a new run has them, but for texts."""
    usual = DistillConfig().to_dict()
    left_out = {"evaluation_prompts", "evaluate_every", "preview_every", "teacher_negative"}
    changed = {n: v for n, v in config.to_dict().items() if v != usual[n] and n not in left_out}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "as usual"
