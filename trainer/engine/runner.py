"""One distillation from start to finish: the worker's whole job for a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError, RunError
from ..exit_note import queued_run
from ..new_run import check_request
from ..request import DistillRequest
from ..run_directory import RunDirectory
from .device import choose_device, is_out_of_memory
from .device_lock import device_held
from .loop import Progress, train
from .monitor import Monitor
from .preparation import prepare
from .preview import Previews
from .prompt_expansion import set_aside
from .run_report import write_run_report
from .run_status import Interrupt, Status
from .session import Session, open_session, text_encoder_files
from .teacher_loras import check_teacher_loras

KEPT_CHECKPOINTS = 5


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        lora: the file it wrote.
        step: finished student updates.
        finished: whether all were done.
        kept_step: the update after which the written student was taken.
        report: report.html, where one was made.
    """

    lora: Path
    step: int
    finished: bool
    session: Session
    kept_step: int
    report: Path | None = None


def run_distillation(
    run: RunDirectory,
    *,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    with_report: bool = True,
) -> Outcome:
    """Train until done or stopped, and write the LoRA; resumes where a saved state is found.

    A finished run that has prompts to measure on ends in a report, if `with_report` is set.

    A stop (Ctrl-C once, or a `stop` file in the run) ends after the update at hand, saves the state
    and writes what there is. A second Ctrl-C stops at once and leaves the last saved state.

    Raises:
        DPDMDError: whatever is wrong with the request, its files, or the training itself.
    """
    with run.lock(), Interrupt(report) as interrupt, device_held(run, interrupt, report):
        if not queued_run(run.path):  # the queue has forgotten them, before it began to listen
            run.clear_requests()
        with Status(run) as status:
            status.write("loading", force=True)
            try:
                prepare(run)
                session = open_session(run, report)
                if session.trainer.resume(run):
                    report(f"Resuming after update {session.trainer.step}")
                outcome = _train(run, session, status, interrupt, report, on_progress)
                if with_report and outcome.finished:
                    outcome = _with_report(outcome, status, interrupt, report)
                return outcome
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
    status: Status,
    interrupt: Interrupt,
    report: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> Outcome:
    previews = Previews(run, session, report)
    previews.teacher()
    config = session.config
    monitor = Monitor(run, session, report, interrupt.should_stop(run))
    if config.evaluation_prompts and config.evaluate_every and not monitor.usable:
        report(
            "Too few prompts to set some aside: the student is not measured. The `compare` "
            "command does that afterwards, with prompts of its own."
        )
    monitor.catch_up(session.trainer.step)

    def after_update(progress: Progress) -> None:
        status.write("running", progress=progress)
        on_progress(progress)
        every = config.preview_every
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            previews.student(progress.step)
        if monitor.due(progress.step):
            monitor.measure(progress.step)

    def after_save(step: int) -> None:
        session.write_lora(run.checkpoints / f"step-{step:08d}.safetensors", overwrite=True)
        for old in sorted(run.checkpoints.glob("step-*.safetensors"))[:-KEPT_CHECKPOINTS]:
            with contextlib.suppress(OSError):  # open in a host, perhaps
                old.unlink()

    finished = train(
        session.trainer,
        run,
        report=after_update,
        should_stop=interrupt.should_stop(run),
        on_save=after_save,
    )
    return _write_result(run, session, monitor, status, finished, report)


def _write_result(
    run: RunDirectory,
    session: Session,
    monitor: Monitor,
    status: Status,
    finished: bool,
    report: Callable[[str], None],
) -> Outcome:
    """Write the last student, or a better one if the run is done, and say so in result.json."""
    output = _output(run, session.request, report)
    step, weights = session.trainer.step, session.trainer.student_weights()
    best = monitor.best() if finished and session.config.keep == "best" else None
    if best is not None:
        report(
            f"The student after update {best.step} is clearly nearer to the teacher than the last "
            f"one; it is written. The last one is kept in {run.checkpoints}."
        )
        step, weights = best.step, best.weights
    session.write_lora(output, overwrite=True, weights=weights, step=step)
    facts = {"lora": str(output), "step": session.trainer.step, "kept_step": step}
    run.write_json("result.json", facts)
    run.clear_requests()
    session.load_student(weights)  # what was saved is what is shown
    status.write("finished" if finished else "stopped", force=True)
    return Outcome(output, session.trainer.step, finished, session, step)


def _with_report(
    outcome: Outcome, status: Status, interrupt: Interrupt, report: Callable[[str], None]
) -> Outcome:
    """The outcome with the report made, where the run can be measured."""
    session = outcome.session
    should_stop = interrupt.should_stop(session.run)
    monitor = Monitor(session.run, session, report, should_stop)
    if not monitor.usable:
        return outcome
    status.write("reporting", force=True)
    page = write_run_report(session, monitor, outcome.lora, report, should_stop)
    if page is not None:
        facts = session.run.read_json("result.json")
        session.run.write_json("result.json", facts | {"report": str(page)})
    session.run.clear_requests()
    status.write("finished", force=True)
    return dataclasses.replace(outcome, report=page)


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


def create_run(
    folder: Path,
    request: DistillRequest,
    prompts: list[str],
    *,
    overwrite: bool,
    evaluation_prompts: Sequence[str] | None = None,
) -> RunDirectory:
    """A run directory for a request, ready for `run_distillation`.

    What can be found out early is found out before an earlier run makes room.

    Args:
        evaluation_prompts: what the student is measured on; by default some of `prompts` are set
            aside for that.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        SettingsError: a setting is not possible with this model or on this machine.
        LoraError: a LoRA cannot be merged into this model, or not be included.
        OutputError: the LoRA or the run cannot be written where they shall go.
    """
    request = check_request(folder, request, overwrite=overwrite)
    config = request.config
    choose_device(config.device)
    request = check_teacher_loras(request, text_encoder_files(request.model))
    if evaluation_prompts is None:
        prompts, evaluation_prompts = set_aside(prompts, config.evaluation_prompts, config.seed)
    return RunDirectory.create(
        folder,
        request.to_dict(),
        prompts,
        evaluation_prompts=evaluation_prompts,
        overwrite=overwrite,
    )


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
