"""One distillation from start to finish: the worker's whole job for a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...app.config.new_run import check_request
from ...app.config.request import DistillRequest
from ...app.disk import check_room
from ...app.library.home import numbered
from ...app.library.path_checks import typed_path
from ...app.prompts.expansion import hold_out
from ...app.runs.directory import (
    EVALUATION_PROMPTS,
    GIVEN_PROMPTS,
    KEPT_CHECKPOINTS,
    PROMPTS,
    UNPREPARED,
    FollowedRun,
    RunDirectory,
)
from ...app.runs.exit_note import NAME, queued_run
from ...app.runs.tables import read_json
from ...core.errors import CheckpointError, DPDMDError, OutputError, RunError
from ...core.files import atomic_write
from ..device import choose_device, device_explained, first_line
from ..distributed import joined
from ..evaluation.monitor import Monitor
from ..evaluation.previews import Previews
from ..evaluation.run_report import write_run_report
from ..evaluation.setbacks import in_words
from ..loading.teacher_loras import check_teacher_loras
from ..toys import encoder
from ..toys.worlds import measures_for
from ..training.loop import Progress, train
from ..training.optimizers import check_optimizer
from ..training.session import Session
from .device_lock import device_held
from .open_session import open_session
from .run_status import Interrupt, Status

log = logging.getLogger("dpdmd_studio.commands")


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
    on_progress: Callable[[Progress], None],
    with_report: bool = True,
) -> Outcome:
    """Train until done or stopped, and write the LoRA; resumes where a saved state is found.

    A finished run that has an evaluation set ends in a report, if `with_report` is set.

    A stop (Ctrl-C once, or a `stop` file in the run) ends after the update at hand, saves the state
    and writes what there is. A second Ctrl-C stops at once and leaves the last saved state.

    Where a launcher has started several processes, all call this; the first alone writes and tells.

    Raises:
        DPDMDError: whatever is wrong with the request, its files, or the training itself.
    """
    encoder.register()
    ranks = joined()
    if not ranks.is_main:
        run = FollowedRun(run.path)
    with ranks.together(), run.lock(), Interrupt() as interrupt, device_held(run, interrupt):
        if not queued_run(run.path):  # the queue has forgotten them, before it began to listen
            run.clear_requests()
            _forget_end(run)
        with Status(run) as status, _explained(run):
            status.write("loading", force=True)
            with ranks.main_first():
                prepare(run)
                if run.latest_state() is None:  # it may have waited for long
                    check_room(run.path.resolve(), DistillRequest.from_dict(run.settings()))
            session = open_session(run)
            if session.trainer.resume(run):
                log.info("Resuming after update %d", session.trainer.step)
            if not ranks.is_main:
                return _follow(run, session, interrupt)
            outcome = _train(run, session, status, interrupt, on_progress)
            if with_report and outcome.finished:
                outcome = _with_report(outcome, status, interrupt)
            return outcome


@contextlib.contextmanager
def _explained(run: RunDirectory) -> Iterator[None]:
    """What ends a run, in one line that says what is kept and what to do."""
    advice = (
        f"{_kept(run)} Close what else uses the device and resume the run, or start a new one with "
        "--preset for your card, --gradient-checkpointing, a smaller --batch-size or --resolution."
    )
    try:
        with device_explained(RunError, advice, f"then resume the run. {_kept(run)}"):
            yield
    except DPDMDError:
        raise
    except OSError as error:
        raise RunError(
            f"A file or drive failed ({error}). {_kept(run)} See that it is there and can be read "
            "and written, then resume the run."
        ) from error
    except Exception as error:
        log.error("Where it went wrong:", exc_info=error)
        raise RunError(
            f"The run ended in an error that nobody foresaw ({type(error).__name__}: "
            f"{first_line(error)}). {_kept(run)} Resume the run; if that ends in the same way, "
            "report it with the last lines of the log."
        ) from error


def _forget_end(run: RunDirectory) -> None:
    """Remove the queue's note of how the run ended before, which says nothing of this start.

    A clock that was set back since then would have it for the newer word.
    """
    if joined().is_main:
        with contextlib.suppress(OSError):
            (run.path / NAME).unlink(missing_ok=True)


def _kept(run: RunDirectory) -> str:
    return f"States saved so far are kept in {run.path}."


def _follow(run: RunDirectory, session: Session, interrupt: Interrupt) -> Outcome:
    """Train as a process that only helps: the first draws, measures and writes."""
    finished = train(
        session.trainer,
        run,
        on_progress=lambda progress: None,
        should_stop=interrupt.should_stop(run),
        on_save=lambda step: None,
    )
    step = session.trainer.step
    return Outcome(Path(session.request.output), step, finished, session, step)


def _train(
    run: RunDirectory,
    session: Session,
    status: Status,
    interrupt: Interrupt,
    on_progress: Callable[[Progress], None],
) -> Outcome:
    previews = Previews(run, session)
    previews.teacher()
    config = session.config
    monitor = Monitor(run, session, interrupt.should_stop(run))
    if config.evaluation_prompts and config.evaluate_every and not monitor.usable:
        log.info(
            "Too few prompts to hold some out for evaluation: the student is not measured. The "
            "`compare` command does that afterwards, with other prompts."
        )
    monitor.catch_up(session.trainer.step)

    def after_update(progress: Progress) -> None:
        status.write("running", progress=progress)
        on_progress(progress)
        if previews.due(progress.step):
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
        on_progress=after_update,
        should_stop=interrupt.should_stop(run),
        on_save=after_save,
    )
    return _write_result(run, session, monitor, status, finished)


def _write_result(
    run: RunDirectory, session: Session, monitor: Monitor, status: Status, finished: bool
) -> Outcome:
    """Write the last student, or a better one if the run is done, and say so in result.json."""
    output = _output(run, session.request)
    step, weights = session.trainer.step, session.trainer.student_weights()
    best = monitor.best() if finished and session.config.keep == "best" else None
    if best is not None:
        log.info(
            "The student after update %d is clearly nearer to the teacher than the last "
            "one; it is written. The last one is kept in %s.",
            best.step,
            run.checkpoints,
        )
        step, weights = best.step, best.weights
    try:
        session.write_lora(output, overwrite=True, weights=weights, step=step)
    except OutputError as error:
        kept = run.checkpoints / f"step-{step:08d}.safetensors"
        session.write_lora(kept, overwrite=True, weights=weights, step=step)
        raise OutputError(f"{error} The finished LoRA is kept as {kept}: copy it.") from error
    facts = {"lora": str(output), "step": session.trainer.step, "kept_step": step}
    run.write_json("result.json", facts)
    run.clear_requests()
    session.load_student(weights)  # what was saved is what is shown
    status.write("finished" if finished else "stopped", force=True)
    return Outcome(output, session.trainer.step, finished, session, step)


def _output(run: RunDirectory, request: DistillRequest) -> Path:
    """Where the LoRA goes: where it was asked for, or beside what has appeared there meanwhile."""
    written: object = None
    if (run.path / "result.json").exists():  # by this very run, when it was stopped before
        written = read_json(run.path / "result.json").get("lora")  # a damaged one says nothing
    asked = Path(request.output)
    names = (asked.with_name(stem + asked.suffix) for stem in numbered(asked.stem))
    output = next(
        path
        for path in names
        if request.overwrite or str(path) == written or not os.path.exists(path)
    )
    if output != asked:
        log.info("%s was made by someone else meanwhile; the LoRA goes to %s.", asked, output)
    return output


def _with_report(outcome: Outcome, status: Status, interrupt: Interrupt) -> Outcome:
    """The outcome with the report made, where the run can be measured."""
    session, page = outcome.session, None
    try:
        monitor = Monitor(session.run, session, interrupt.should_stop(session.run))
        if not monitor.usable:
            return outcome
        status.write("reporting", force=True)
        page = write_run_report(
            session, monitor, outcome.lora, measures_for(session.checkpoint.path)
        )
        if page is not None:
            facts = session.run.read_json("result.json")
            session.run.write_json("result.json", facts | {"report": str(page)})
        session.run.clear_requests()
    except Exception as error:  # the LoRA is there: no report that fails may have the run fail
        log.warning("There is no whole report. %s", in_words(error))
    status.write("finished", force=True)
    return dataclasses.replace(outcome, report=page)


def create_run(
    folder: Path,
    request: DistillRequest,
    prompts: list[str],
    *,
    overwrite: bool,
    evaluation_prompts: Sequence[str] | None = None,
) -> RunDirectory:
    """A run directory for a request, ready for `run_distillation`.

    Of several processes the first makes it, and the others open it.

    What can be found out early is found out before an earlier run makes room.

    Args:
        evaluation_prompts: the evaluation set; by default some of `prompts` are held out for it.

    Raises:
        CheckpointError: a model file is missing or no supported model.
        SettingsError: a setting is not possible with this model or on this machine.
        LoraError: a LoRA cannot be merged into this model, or not be included.
        OutputError: the LoRA or the run cannot be written where they shall go.
    """
    encoder.register()
    ranks = joined()
    with ranks.together():
        if not ranks.is_main:
            return RunDirectory.open(Path(ranks.of_main("")))
        request = check_request(folder, request, overwrite=overwrite)
        ranks.own_rows(request.config.batch_size)  # an image for each
        run = _make_run(folder, request, prompts, evaluation_prompts, overwrite=overwrite)
        ranks.of_main(str(run.path.resolve()))
        return run


def _make_run(
    folder: Path,
    request: DistillRequest,
    prompts: list[str],
    evaluation_prompts: Sequence[str] | None,
    *,
    overwrite: bool,
) -> RunDirectory:
    config = request.config
    check_optimizer(config.optimizer, choose_device(config.device))
    request = check_teacher_loras(request, request.model.text_encoders())
    if evaluation_prompts is None:
        prompts, evaluation_prompts = hold_out(prompts, config.evaluation_prompts, config.seed)
    return RunDirectory.create(
        folder,
        request.to_dict(),
        prompts,
        evaluation_prompts=evaluation_prompts,
        overwrite=overwrite,
    )


def prepare(run: RunDirectory) -> None:
    """Check the teacher LoRAs and hold prompts out, unless that was done; safe to be cut short.

    Raises:
        LoraError: a LoRA cannot be merged into this model, or not be included.
        PromptError: alternatives in a prompt cannot be read.
    """
    if not (run.path / UNPREPARED).exists():
        return
    settings = run.settings()
    request = DistillRequest.from_dict(settings)
    # hashes of an earlier run, which this one is a copy of, bind this one to nothing
    loras = tuple(dataclasses.replace(lora, sha256="") for lora in request.teacher_loras)
    request = dataclasses.replace(request, teacher_loras=loras)
    request = check_teacher_loras(request, request.model.text_encoders())
    if (run.path / GIVEN_PROMPTS).exists():
        config = request.config
        given = run.given_prompts()
        training, measured = hold_out(given, config.evaluation_prompts, config.seed)
        for name, texts in ((EVALUATION_PROMPTS, measured), (PROMPTS, training)):
            if texts:
                atomic_write.write_text(run.path / name, "\n".join(texts) + "\n")
    run.write_json("settings.json", settings | request.to_dict())
    (run.path / GIVEN_PROMPTS).unlink(missing_ok=True)
    (run.path / UNPREPARED).unlink(missing_ok=True)


def move_model_files(run: RunDirectory, files: Mapping[str, str]) -> None:
    """Note where a run's model files are now; a resume finds out whether they are the same.

    Args:
        files: new paths by name: checkpoint, clip_l, clip_g, t5, qwen, vae.

    Raises:
        RunError: a live process owns the run.
        CheckpointError: there is no such file.
    """
    ranks = joined()
    with ranks.together(), ranks.main_first():
        if ranks.is_main:
            _move_model_files(run, files)


def _move_model_files(run: RunDirectory, files: Mapping[str, str]) -> None:
    for file in files.values():
        if not os.path.exists(typed_path(file)):
            raise CheckpointError(f"There is no file {file}.")
    with run.lock():
        settings = run.settings()
        request = DistillRequest.from_dict(settings)
        request = dataclasses.replace(request, model=dataclasses.replace(request.model, **files))
        run.write_json("settings.json", settings | request.absolute().to_dict())
