"""One distillation from start to finish: the worker's whole job for a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from ...core import atomic_write
from ...core.errors import CheckpointError, OutputError, RunError
from ...core.families import identify
from ...core.lora_file import check_output
from ..request import DistillRequest
from ..run_directory import RunDirectory
from .device import choose_device, is_out_of_memory
from .loop import Progress, train
from .preview import Previews
from .session import Session, choose_resolutions, open_session

KEPT_CHECKPOINTS = 5
# Time a run may spend telling the file system how it goes.
PROGRESS_INTERVAL_SECONDS = 1.0
log = logging.getLogger("dpdmd_studio.run")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the LoRA it wrote, after how many updates, and whether all were done."""

    lora: Path
    step: int
    finished: bool
    session: Session


def run_distillation(
    run: RunDirectory,
    *,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    """Train until done or stopped, and write the LoRA; resumes where a saved state is found.

    A stop (Ctrl-C once, or a `stop` file in the run) ends after the update at hand, saves the state
    and writes what there is. A second Ctrl-C stops at once and leaves the last saved state.

    Raises:
        DPDMDError: whatever is wrong with the request, its files, or the training itself.
    """
    with run.lock(), _Interrupt(report) as interrupt:
        run.clear_requests()
        with _Status(run) as status:
            status.write("loading", force=True)
            try:
                session = open_session(run, report)
                if session.trainer.resume(run):
                    report(f"Resuming after update {session.trainer.step}")
                return _train(run, session, status, interrupt, report, on_progress)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise RunError(
                    f"The device ran out of memory ({str(error).splitlines()[0]}). States saved "
                    f"so far are kept in {run.path}. Start a new run with --preset for your "
                    "card, --gradient-checkpointing, a smaller --batch-size or --resolution."
                ) from error


def _train(
    run: RunDirectory,
    session: Session,
    status: _Status,
    interrupt: _Interrupt,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    previews = Previews(run, session, report)
    previews.teacher()

    def after_update(progress: Progress) -> None:
        status.write("running", progress=progress)
        on_progress(progress)
        every = session.config.preview_every
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            previews.student(progress.step)

    def after_save(step: int) -> None:
        session.write_lora(run.checkpoints / f"step-{step:08d}.safetensors", overwrite=True)
        for old in sorted(run.checkpoints.glob("step-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            with contextlib.suppress(OSError):  # open in a host, perhaps
                old.unlink()

    finished = train(
        session.trainer,
        run,
        report=after_update,
        should_stop=lambda: interrupt.stop_wanted() or run.stop_requested,
        on_save=after_save,
    )
    output = _output(run, session.request, report)
    session.write_lora(output, overwrite=True)
    run.write_json("result.json", {"lora": str(output), "step": session.trainer.step})
    run.clear_requests()
    session.load_student(session.trainer.student_weights())  # what was saved is what is shown
    status.write("finished" if finished else "stopped", force=True)
    return Outcome(output, session.trainer.step, finished, session)


def _output(run: RunDirectory, request: DistillRequest, report: Callable[[str], None]) -> Path:
    """Where the LoRA goes: where it was asked for, or beside what has appeared there meanwhile."""
    written = None
    if (run.path / "result.json").exists():  # by this very run, when it was stopped before
        written = run.read_json("result.json").get("lora")
    asked, count = Path(request.output), 1
    output = asked
    while output.exists() and not request.overwrite and str(output) != written:
        count += 1
        output = asked.with_name(f"{asked.stem}-{count}{asked.suffix}")
    if output != asked:
        report(f"{asked} was made by someone else meanwhile; the LoRA goes to {output}.")
    return output


class _Status:
    """progress.json: what front ends read while the run goes.

    A file that cannot be written is logged and costs no run: the state says what is true.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._last, self._facts = run, 0.0, {}

    def __enter__(self) -> _Status:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            self.write(status, force=True, error=str(error))

    def write(
        self,
        status: str,
        *,
        progress: Progress | None = None,
        force: bool = False,
        error: str | None = None,
    ) -> None:
        if progress is not None:
            self._facts = {
                "step": progress.step,
                "steps": progress.steps,
                "seconds_per_step": progress.seconds_per_step,
                "seconds_left": progress.seconds_left,
                "metrics": progress.metrics,
            }
        now = time.monotonic()
        if force or now - self._last >= PROGRESS_INTERVAL_SECONDS:
            self._last = now
            facts = {"status": status, "pid": os.getpid(), "updated_at": time.time()}
            facts |= {"error": error} if error else {}
            try:
                self._run.touch_lock()
                self._run.write_json("progress.json", facts | self._facts)
            except (OSError, OutputError) as problem:
                log.warning("%s", problem)


class _Interrupt(contextlib.AbstractContextManager["_Interrupt"]):
    """Ctrl-C once asks for a stop; twice raises KeyboardInterrupt."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.asked, self._told, self._report, self._before = False, False, report, None

    def __enter__(self) -> _Interrupt:
        with contextlib.suppress(ValueError):  # not the main thread: only the stop file counts
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True  # told by `stop_wanted`: writing in a signal handler may break a write

    def stop_wanted(self) -> bool:
        """Whether Ctrl-C was pressed; says so the first time it is asked after that."""
        if self.asked and not self._told:
            self._told = True
            self._report("Stopping after this update; press Ctrl-C again to stop at once")
        return self.asked


def create_run(
    folder: Path, request: DistillRequest, prompts: list[str], *, overwrite: bool
) -> RunDirectory:
    """A run directory for a request, ready for `run_distillation`.

    What can be found out early is found out before an earlier run makes room.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        SettingsError: a setting is not possible with this model or on this machine.
        OutputError: the LoRA or the run cannot be written where they shall go.
    """
    request = request.absolute()
    config = request.config.validate()
    for name in filter(None, dataclasses.asdict(request.model).values()):
        if not Path(name).exists():
            raise CheckpointError(f"There is no file {name}. Check the spelling of the path.")
    choose_resolutions(config, identify(Path(request.model.checkpoint)))
    choose_device(config.device)
    _check_places(Path(folder).expanduser().resolve(), request, overwrite)
    return RunDirectory.create(folder, request.to_dict(), prompts, overwrite=overwrite)


def move_model_files(run: RunDirectory, files: Mapping[str, str]) -> None:
    """Note where a run's model files are now; a resume finds out whether they are the same.

    Args:
        files: new paths by name: checkpoint, clip_l, clip_g, t5, vae.

    Raises:
        RunError: a live process owns the run.
        CheckpointError: there is no such file.
    """
    for file in files.values():
        if not Path(file).expanduser().exists():
            raise CheckpointError(f"There is no file {file}.")
    with run.lock():
        settings = run.settings()
        request = DistillRequest.from_dict(settings)
        request = dataclasses.replace(request, model=dataclasses.replace(request.model, **files))
        run.write_json("settings.json", settings | request.absolute().to_dict())


def _check_places(folder: Path, request: DistillRequest, overwrite: bool) -> None:
    """Raise OutputError now for all that would else come out after hours of training."""
    output = Path(request.output)
    check_output(output, overwrite=overwrite)
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output.name} must end in .safetensors; hosts look for that.")
    for name in filter(None, dataclasses.asdict(request.model).values()):
        if output.exists() and Path(name).exists() and output.samefile(name):
            raise OutputError(f"{output} is a file that this run reads. Name another --output.")
    if output == folder:
        raise OutputError(f"{output} is named for the LoRA and for the run's folder, too.")
    with atomic_write.explained(output), tempfile.TemporaryFile(dir=output.parent):
        pass
