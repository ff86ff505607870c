"""Faults planted in a run, stage by stage, and what becomes of it.

Shared by a test (some, in one process) and by a benchmark (all, each in a process of its own). A
disk that is full and a file that cannot be read are played by what opens files: nothing is filled,
and no rights are taken, which would not bind an administrator.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.cli import main
from dpdmd_studio.trainer.commands import distill
from dpdmd_studio.trainer.evaluation import evaluate, monitor, perception, previews, run_report
from dpdmd_studio.trainer.loading import weights
from dpdmd_studio.trainer.loading.vae import KLDecoder
from dpdmd_studio.trainer.method import equations
from dpdmd_studio.trainer.model.conditioning import Encoded
from dpdmd_studio.trainer.text import cache
from dpdmd_studio.trainer.training import gradients, session, state
from dpdmd_studio.trainer.training.optimizers import AdapterOptimizer
from dpdmd_studio.trainer.training.trainer import Trainer
from safetensors import SafetensorError
from tiny_runs import TINY, request_stop

MEMORY_ONCE, MEMORY = "out of memory once", "out of memory for good"
NO_NUMBERS, DISK, UNREADABLE = "not finite", "full disk", "unreadable file"
ODD, LOST, KILL = "part that fails oddly", "lost device", "killed process"
FAULTS = (MEMORY_ONCE, MEMORY, NO_NUMBERS, DISK, UNREADABLE, ODD, LOST, KILL)

SETTINGS = TINY | {
    "fake_updates": 1,
    "teacher_steps": 4,
    "batch_size": 1,
    "preview_every": 2,
    "evaluate_every": 2,
    "evaluation_prompts": 2,
}
PROMPTS = [f"a thing number {number}" for number in range(12)]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))

Work = Callable[[], Any]
Act = Callable[[Work], Any]
"""Does what a fault does in place of some work, or around it."""


# Runs


def new_run(folder: Path, checkpoint: Path) -> RunDirectory:
    """A run that is measured, previewed and reported on, of four updates and two saved states."""
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(SETTINGS),
        output=str(folder / "student.safetensors"),
    )
    folder.mkdir(parents=True)
    return distill.create_run(folder / "run", request, PROMPTS, overwrite=False)


def new_checkpoint(folder: Path) -> Path:
    """The smallest one that there is."""
    tiny = checkpoints.sd3(medium35=True, with_t5=False)
    return checkpoints.save(folder / "teacher.safetensors", checkpoints.file_state(tiny))


def quick_and_alike(patch: pytest.MonkeyPatch) -> None:
    """Few seeds, no network of features, and one time of day for the files of all runs."""
    patch.setattr(monitor, "EVALUATION_SEEDS", (2_000_001, 2_000_002))
    patch.setattr(previews, "PREVIEW_SEEDS", (1_000_001,))
    patch.setattr(previews, "PREVIEW_PROMPTS", 1)
    patch.setattr(perception, "perceptual_features", lambda: None)
    patch.setattr(session, "time", SimpleNamespace(time=lambda: 1.7e9))


def lora_of(run: RunDirectory) -> bytes:
    """The LoRA that a run made, to the byte; b"" where it made none."""
    with contextlib.suppress(OSError):
        return Path(run.settings()["output"]).read_bytes()
    return b""


def kept_state(run: RunDirectory) -> int:
    """The update of its last saved state, which must be whole; 0 without one, -1 if it has NaN."""
    folder = run.latest_state()
    if folder is None:
        return 0
    for file in folder.glob("*.safetensors"):
        if not all(bool(torch.isfinite(value).all()) for value in state.load_file(file).values()):
            return -1
    return json.loads((folder / "state.json").read_text())["step"]


# Faults


@dataclass
class Planter:
    """Plants one fault.

    Attributes:
        patch: what it changes.
        fault: one of FAULTS.
        root: of all files that fail.
        die: ends the process.
        reached: how often the fault came about.
    """

    patch: pytest.MonkeyPatch
    fault: str
    root: Path
    die: Callable[[], Any]
    reached: int = 0
    inside: set[str] = field(default_factory=set)

    def act(self, work: Work) -> Any:
        """Do what the fault does, but for NaN: each stage has numbers of its own."""
        self.reached += 1
        if self.fault == MEMORY or (self.fault == MEMORY_ONCE and self.reached == 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.fault == ODD:
            raise KeyError("weight")
        if self.fault == LOST:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with `DSA` to ...")
        if self.fault == KILL:
            self.die()
        if self.fault == DISK and self.reached == 1:
            fill_disk(self.patch, self.root)
        if self.fault == UNREADABLE:
            with reads_failing(self.root):
                return work()
        return work()

    def at(
        self,
        owner: Any,
        name: str,
        act: Act | None = None,
        *,
        call: int = 1,
        when: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        """Have the fault come about where `owner.name` is called.

        Args:
            act: in place of `self.act`.
            call: the first of its calls that meets the fault.
            when: which calls count, by their arguments.
        """
        original, seen = getattr(owner, name), 0

        def replacement(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += bool(counts := when(*arguments, **named))
            if not counts or seen < call:
                return original(*arguments, **named)
            return (act or self.act)(lambda: original(*arguments, **named))

        self.patch.setattr(owner, name, replacement)

    def around(self, owner: Any, name: str) -> Callable[..., bool]:
        """Whether `owner.name` is at work, as a condition for `at`."""
        original = getattr(owner, name)

        def replacement(*arguments: Any, **named: Any) -> Any:
            self.inside.add(name)
            try:
                return original(*arguments, **named)
            finally:
                self.inside.discard(name)

        self.patch.setattr(owner, name, replacement)
        return lambda *_, **__: name in self.inside

    def spoiled(self, spoil: Callable[[Any], Any]) -> Act | None:
        """An act that spoils the numbers of a result, where that is the fault."""

        def act(work: Work) -> Any:
            self.reached += 1
            return spoil(work())

        return act if self.fault == NO_NUMBERS else None


def fill_disk(patch: pytest.MonkeyPatch, root: Path) -> None:
    """From here on half of what is written below `root` is, and the rest fails."""
    original = builtins.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        stream = original(file, mode, *rest, **named)
        return _Full(stream) if _below(file, root) and set(mode) & set("wax") else stream

    def save_file(tensors: Any, path: Any, *_: Any, **__: Any) -> None:
        with original(path, "wb") as stream:
            stream.write(b"half a header")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    for module in (builtins, io):
        patch.setattr(module, "open", opened)
    for module in (state, monitor, cache):
        patch.setattr(module, "save_file", save_file)


class _Full:
    """A file on a full disk. It has no number: libraries would write through that."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        self._stream.write(data[: len(data) // 2])
        self._stream.flush()
        raise FULL

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.write(part)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def reads_failing(root: Path) -> Iterator[None]:
    """No file below `root` can be read in the block."""
    original = builtins.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if _below(file, root) and not set(mode) & set("wax+"):
            raise BROKEN
        return original(file, mode, *rest, **named)

    def refuse(*_: Any, **__: Any) -> Any:
        raise BROKEN

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        for module, name in ((state, "load_file"), (monitor, "safe_open"), (weights, "safe_open")):
            patch.setattr(module, name, refuse)
        yield


def _below(file: Any, root: Path) -> bool:
    return isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(str(root))


# Stages


def _encoding(plant: Planter) -> None:
    if plant.fault == UNREADABLE:
        plant.at(weights.Component, "load", when=_is_encoder)
        return
    act = plant.spoiled(lambda e: Encoded(e.tokens * torch.nan, e.pooled)) or plant.act
    original = cache.plan

    def plan(*arguments: Any) -> cache.EncoderPlan:
        how = original(*arguments)
        return replace(how, encode=lambda *given: act(lambda: how.encode(*given)))

    plant.patch.setattr(cache, "plan", plan)


def _loading(plant: Planter) -> None:
    def spoil(work: Work) -> Any:
        plant.reached += 1
        read = weights.Weights.read
        plant.patch.setattr(weights.Weights, "read", lambda *key: read(*key) * torch.nan)
        return work()

    act = spoil if plant.fault == NO_NUMBERS else None
    plant.at(weights.Component, "load", act, when=_is_denoiser)


def _first_update(plant: Planter) -> None:
    if plant.fault == NO_NUMBERS:
        plant.at(equations, "dmd_loss", plant.spoiled(lambda loss: loss * torch.nan))
    elif plant.fault == UNREADABLE:
        plant.at(Trainer, "update")
    else:
        plant.at(gradients, "student_update")


def _fake_update(plant: Planter) -> None:
    if plant.fault == NO_NUMBERS:
        plant.at(equations, "fake_loss", plant.spoiled(lambda loss: loss * torch.nan), call=3)
    else:
        plant.at(gradients, "fake_update", call=3)


def _optimizer_step(plant: Planter) -> None:
    """The student's in the third update."""
    if plant.fault == NO_NUMBERS:
        original = AdapterOptimizer.step

        def step(self: AdapterOptimizer, *arguments: Any) -> None:
            original(self, *arguments)
            plant.reached += 1
            if plant.reached == 5:
                self._parameters[0].data.fill_(torch.nan)

        plant.patch.setattr(AdapterOptimizer, "step", step)
        return
    name = "prepare" if plant.fault in (MEMORY, MEMORY_ONCE) else "step"
    plant.at(AdapterOptimizer, name, call=5)


def _saving(plant: Planter) -> None:
    """The second state, when some of its files are written."""
    if plant.fault != NO_NUMBERS:
        plant.at(state, "save_file", call=7)
        return
    original = Trainer.save

    def save(self: Trainer, run: RunDirectory) -> None:
        if self.step == 4:
            plant.reached += 1
            self.roles.parameters("fake")[0].data.fill_(torch.nan)
        original(self, run)

    plant.patch.setattr(Trainer, "save", save)


def _loading_state(plant: Planter) -> None:
    def refuse(work: Work) -> Any:
        plant.reached += 1
        raise BROKEN

    act = refuse if plant.fault == UNREADABLE else plant.spoiled(_nan_of_each)
    plant.at(state, "load_file", act, call=2)


def _measurement(plant: Planter) -> None:
    if plant.fault in (DISK, UNREADABLE):
        plant.at(monitor.Monitor, "_measure")
        return
    within = plant.around(monitor.Monitor, "_measure")
    plant.at(evaluate, "integrate", plant.spoiled(_nan), when=within)


def _preview(plant: Planter) -> None:
    """Of the student, after that of the teacher."""
    if plant.fault in (DISK, UNREADABLE):
        plant.at(previews.Previews, "_draw_sheet", call=2)
        return
    within = plant.around(previews.Previews, "_draw_sheet")
    plant.at(evaluate, "integrate", plant.spoiled(_nan), call=2, when=within)


def _decoding(plant: Planter) -> None:
    if plant.fault == UNREADABLE:
        plant.at(weights.Component, "load", when=_is_decoder)
    else:
        plant.at(KLDecoder, "forward", plant.spoiled(_nan))


def _writing(plant: Planter) -> None:
    if plant.fault == UNREADABLE:
        plant.at(distill, "_write_result")
        return
    original = session.write_lora

    def spoil(path: Path, lora: Any, **named: Any) -> Path:
        if path.name == "student.safetensors":
            plant.reached += 1
            pairs = {name: replace(p, up=p.up * torch.inf) for name, p in lora.pairs.items()}
            lora = replace(lora, pairs=pairs)
        return original(path, lora, **named)

    if plant.fault == NO_NUMBERS:
        plant.patch.setattr(session, "write_lora", spoil)
    else:
        plant.at(
            session, "write_lora", when=lambda path, *_, **__: path.name == "student.safetensors"
        )


def _report(plant: Planter) -> None:
    if plant.fault == UNREADABLE:
        plant.at(distill, "write_run_report")
    elif plant.fault in (DISK, ODD, LOST, KILL):
        plant.at(run_report, "write_report")
    else:
        within = plant.around(distill, "write_run_report")
        plant.at(evaluate, "integrate", plant.spoiled(_nan), when=within)


def _nan(found: torch.Tensor) -> torch.Tensor:
    return found * torch.nan


def _nan_of_each(found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * torch.nan for name, value in found.items()}


def _is_encoder(component: weights.Component, *_: Any) -> bool:
    return not _is_denoiser(component) and not _is_decoder(component)


def _is_decoder(component: weights.Component, *_: Any) -> bool:
    return "VAE" in component.what


def _is_denoiser(component: weights.Component, *_: Any) -> bool:
    return component.what in ("UNet", "transformer")


@dataclass(frozen=True)
class Stage:
    """A part of a run that a fault can meet.

    Attributes:
        plant: has the fault come about in it.
        cannot: why a fault cannot happen, by the fault.
        begun: whether the run was stopped before after its second update.
    """

    plant: Callable[[Planter], None]
    cannot: Mapping[str, str] = field(default_factory=dict)
    begun: bool = False


STAGES = {
    "encoding prompts": Stage(_encoding),
    "loading the denoiser": Stage(_loading),
    "loading a state": Stage(_loading_state, begun=True),
    "first update": Stage(_first_update),
    "fake update": Stage(_fake_update, {UNREADABLE: "its prompts are those of the student's"}),
    "optimizer step": Stage(_optimizer_step, {UNREADABLE: "reads no file"}),
    "saving a state": Stage(_saving, {UNREADABLE: "reads no file"}),
    "measurement": Stage(_measurement),
    "preview": Stage(_preview),
    "decoding": Stage(_decoding, {DISK: "writes no file"}),
    "writing the LoRA": Stage(_writing),
    "report": Stage(_report),
}


def plant(
    stage: str, fault: str, patch: pytest.MonkeyPatch, root: Path, die: Callable[[], Any]
) -> Planter:
    """Have a fault come about at a stage; what is returned tells whether it did."""
    planter = Planter(patch, fault, root, die)
    STAGES[stage].plant(planter)
    return planter


def stop_at_two(run: RunDirectory) -> Callable[[Any], None]:
    """Asks a run to stop after its second update."""
    return lambda progress: request_stop(run) if progress.step == 2 else None


# What becomes of it

LEAST_KEPT = {
    "loading a state": 2,
    "fake update": 2,
    "optimizer step": 2,
    "saving a state": 2,
    "measurement": 2,
    "preview": 2,
    "writing the LoRA": 4,
    "report": 4,
}
"""The update of the state that a run must have kept when a fault met it at a stage."""
CHANGING = {"first update", "fake update", "optimizer step"}
"""Stages at which memory is found by other settings, which the LoRA's metadata then say."""
LONGEST_LINE = 700


@dataclass(frozen=True)
class Ended:
    """How a process that went on with a run ended.

    Attributes:
        code: its exit code; -9 if it was killed.
        said: what it logged.
        error: the line that it ended with, "" if it ended well.
        reached: how often the fault came about.
    """

    code: int
    said: tuple[str, ...] = ()
    error: str = ""
    reached: int = 1


def go_on(run: RunDirectory) -> Ended:
    """Resume a run as a person at a terminal does."""
    logged: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger, shown = logging.getLogger("dpdmd_studio"), io.StringIO()
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
            code = main(["resume", str(run.path)])
    except Exception as error:  # one line is what a person should get
        return Ended(1, tuple(logged), f"{type(error).__name__}: {error}")
    finally:
        logger.removeHandler(handler)
    lines = shown.getvalue().splitlines()
    return Ended(code, tuple(logged), lines[-1] if code and lines else "")


def verdict(
    stage: str, fault: str, ended: Ended, run: RunDirectory, undisturbed: bytes
) -> tuple[str, str]:
    """(what the run did, what is wrong with that: "" for nothing), before it is resumed."""
    if not ended.reached:
        return "", "the fault never came about"
    if kept_state(run) < LEAST_KEPT.get(stage, 0):
        return "", f"only the state of update {kept_state(run)} is kept"
    if ended.code == 0:
        changed = fault in (MEMORY, MEMORY_ONCE) and stage in CHANGING
        same = changed or lora_of(run) == undisturbed
        return "finishes", "" if same and lora_of(run) else "its LoRA is another"
    if ended.code == -9:
        return "is killed", "" if fault == KILL else "it died"
    line = ended.error.removeprefix("error: ")
    odd = ended.code != 2 or line == ended.error or not line.endswith(".")
    odd = odd or len(line) > LONGEST_LINE
    return "stops", f"it ends with code {ended.code} and {ended.error!r}" if odd else ""


def distil_to_two(run: RunDirectory) -> str:
    """Train until the second update and stop there; the LoRA that this wrote."""
    return str(distill.run_distillation(run, on_progress=stop_at_two(run)).lora)
