"""The command line: one function a command; heavy imports wait for use."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app.config.distill_config import DistillConfig
from ..app.config.new_run import check_request
from ..app.config.presets import MEMORIES
from ..app.config.request import DistillRequest, TeacherLora, parse_seeds
from ..app.disk import check_room
from ..app.environment.launched import place, require_one_process
from ..app.environment.streams import lost, open_missing, tolerant
from ..app.library.path_checks import typed_path
from ..app.runs.exit_note import recorded
from ..core.errors import DPDMDError, SettingsError
from .arguments import (
    MODEL_FILES,
    Once,
    add_config_arguments,
    add_drawing,
    add_model_files,
    add_other_files,
    add_prediction,
    expanded,
    model_files,
    parse_lora,
    print_result,
    prompts_of,
    require_text,
)
from .check import add_check
from .compare import add_compare
from .console import plain_line, show_warnings, shown_by
from .estimate import add_estimate
from .jobs import add_job_commands, add_queue_option, queue_distill
from .package import add_package
from .settings import add_settings, add_settings_option, settings_values

if TYPE_CHECKING:
    from ..trainer.commands.distill import Outcome

PROGRAM = "dpdmd-studio"
USER_ERROR, INTERRUPTED = 2, 130
log = logging.getLogger("dpdmd_studio.cli")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 the user's mistake, 130 interrupted)."""
    open_missing()
    for stream in (sys.stdout, sys.stderr):  # a console without a letter shows ? in its place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with tolerant() as output:
        code = _run(argv)
    return code or int(lost(output))


def _run(argv: list[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    show_warnings()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    try:
        require_text(arguments)
        if arguments.run_command not in (_distill, _resume):
            require_one_process("This command")
        with shown_by(plain_line):
            return recorded(arguments.run_command, arguments)
    except DPDMDError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Distil your own checkpoint into a few-step LoRA, from prompts alone.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_distill(commands.add_parser("distill", help="make a few-step LoRA of a checkpoint"))
    add_estimate(commands.add_parser("estimate", help="say what a run will need, before it starts"))
    checking = "try a checkpoint on this device, before a first run"
    add_check(commands.add_parser("check", help=checking))
    _add_resume(commands.add_parser("resume", help="go on with a stopped or interrupted run"))
    _add_sample(commands.add_parser("sample", help="make images with a checkpoint or a LoRA"))
    comparison = commands.add_parser("compare", help="draw and measure LoRAs beside their teacher")
    add_model_files(comparison)
    add_compare(comparison)
    packaging = commands.add_parser("package", help="make a folder and a zip to share a LoRA")
    add_package(packaging)
    add_other_files(packaging)
    add_job_commands(commands)
    _add_gui(commands.add_parser("gui", help="open the pages in a browser"))
    add_settings(commands.add_parser("settings", help="write settings to share"))
    _add_inspect(commands.add_parser("inspect", help="say what a checkpoint or LoRA file is"))
    _add_demo(commands.add_parser("demo", help="distil the embedded checkpoint, show the result"))
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _add_distill(parser: argparse.ArgumentParser) -> None:
    add_model_files(parser)
    parser.add_argument("--prompts", required=True, metavar="FILE",
                        help="one prompt a line, or a folder of your own images")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help="the LoRA to write")
    parser.add_argument("--run", metavar="DIR", help="run folder (default: in the data folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--format", choices=("kohya", "peft"), default="kohya",
                        help="kohya: for ComfyUI, A1111, Forge; peft: for diffusers")  # fmt: skip
    parser.add_argument("--teacher-lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a LoRA to merge into the teacher; may be repeated")  # fmt: skip
    parser.add_argument("--include-teacher-loras", action="store_true",
                        help="the new LoRA holds these LoRAs, too")  # fmt: skip
    parser.add_argument("--preset", choices=MEMORIES, help="settings for a card's memory")
    add_settings_option(parser)
    add_queue_option(parser)
    add_config_arguments(parser)
    parser.set_defaults(run_command=_distill)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--checkpoint", metavar="FILE", help="where it is now, if it was moved")
    add_other_files(parser)
    parser.set_defaults(run_command=_resume)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    add_model_files(parser)
    parser.add_argument("--lora", action=Once, metavar="FILE[:STRENGTH]",
                        help="a few-step LoRA; without it: the teacher")  # fmt: skip
    parser.add_argument("--with-lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a LoRA that is on as well; may be repeated")  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    source.add_argument("--prompts", action="append", metavar="FILE", help="may be repeated")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--seeds", default="0-3", metavar="LIST", help="such as 0-8 (default 0-3)")
    parser.add_argument("--negative", default="", metavar="TEXT")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the LoRA's, or 28")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="1 is off")
    parser.add_argument("--guidance-rescale", type=float, metavar="X",
                        help="default: .7 for zero terminal SNR, otherwise 0")  # fmt: skip
    parser.add_argument("--resolution", default="", metavar="WxH")
    parser.add_argument("--clip-skip", type=int, metavar="N")
    add_prediction(parser)
    add_drawing(parser, "replace images of that name")
    parser.set_defaults(run_command=_sample)


def _add_gui(parser: argparse.ArgumentParser) -> None:
    """Options of the `gui` command."""
    parser.add_argument(
        "--listen",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on; others than this computer need the token that "
        "is printed (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free from 7868")
    parser.add_argument(
        "--token",
        default="",
        metavar="TEXT",
        help="ask for this token (default: a random one if others can connect)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.set_defaults(run_command=_gui)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.set_defaults(run_command=_inspect)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", default="demo-output", metavar="DIR", help="default: demo-output"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="student updates of the demo")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    parser.set_defaults(run_command=_demo)


def _distill(arguments: argparse.Namespace) -> int:
    from ..app.library.home import new_run_folder
    from ..core.families import identify

    # before anything is made or replaced: is that a model at all?
    detection = identify(Path(typed_path(arguments.checkpoint)))
    config = DistillConfig.from_dict(settings_values(arguments, detection))
    prompts = prompts_of(arguments.prompts)
    request = DistillRequest(
        model=model_files(arguments),
        config=config,
        output=arguments.output,
        overwrite=arguments.overwrite,
        file_format=arguments.format,
        teacher_loras=tuple(
            TeacherLora(path=path, strength=strength)
            for path, strength in map(parse_lora, arguments.teacher_lora)
        ),
        include_teacher_loras=arguments.include_teacher_loras,
        created_at=time.time(),
    )
    if arguments.queue:
        require_one_process("`distill --queue`")
        return queue_distill(arguments, request, prompts)
    from ..trainer.commands.distill import create_run  # heavy, and not needed to queue

    named = Path(typed_path(arguments.run)) if arguments.run else None
    folder = named or new_run_folder(Path(arguments.output).stem)
    if place().size == 1:  # before an earlier run makes room; of several, none may end alone
        checked = check_request(folder, request, overwrite=arguments.overwrite)
        check_room(folder.resolve(), checked)
    run = create_run(folder, request, prompts, overwrite=arguments.overwrite)
    log.info("Run: %s", run.path)
    return _train(run, arguments.json)


def _resume(arguments: argparse.Namespace) -> int:
    from ..app.runs.directory import RunDirectory
    from ..trainer.commands.distill import move_model_files

    run = RunDirectory.open(Path(typed_path(arguments.run)))
    named = {name: getattr(arguments, name) for name in MODEL_FILES}
    moved = {name: file for name, file in named.items() if file}
    if moved:
        move_model_files(run, moved)
    return _train(run, arguments.json)


def _train(run: Any, as_json: bool) -> int:
    from ..trainer.commands.distill import run_distillation
    from ..trainer.commands.terminal import ProgressLine

    with ProgressLine() as line, shown_by(line.message):
        outcome = run_distillation(run, on_progress=line.show)
    _print_outcome(outcome, run.path, as_json)
    return 0


def _print_outcome(outcome: Outcome, folder: Path, as_json: bool) -> None:
    """Say how a run ended and how to go on; of several processes the first does.

    Args:
        folder: the run's.
    """
    if not place().is_main:
        return
    if as_json:
        facts = {"lora": str(outcome.lora), "run": str(folder), "step": outcome.step,
                 "finished": outcome.finished}  # fmt: skip
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    state = "Finished" if outcome.finished else "Stopped"
    sys.stdout.write(f"{state} after {outcome.step} updates: {outcome.lora}\n")
    if not outcome.finished:
        sys.stdout.write(f'Go on with: {_program()} resume "{folder}"\n')


def _program() -> str:
    """How this program was called, for commands that a person may copy."""
    called = Path(sys.argv[0])
    if called.stem == PROGRAM:
        return PROGRAM
    return f'{Path(sys.executable).stem} "{Path(__file__).absolute().parents[1]}"'


def _sample(arguments: argparse.Namespace) -> int:
    from ..app.prompts.reading import parse_line
    from ..trainer.commands.sample import SampleRequest, sample_images

    prompts = [text for path in arguments.prompts or () for text in prompts_of(path)]
    for line in map(parse_line, arguments.prompt or ()):
        prompts.extend(line.prompts)
        for note in line.notes:
            log.info("%s", note)
    names = ("negative", "steps", "guidance_scale", "guidance_rescale", "resolution",
             "clip_skip", "prediction", "zero_terminal_snr", "shift", "batch_size", "device",
             "dtype", "overwrite")  # fmt: skip
    request = SampleRequest(
        model=model_files(arguments),
        prompts=expanded(prompts),
        seeds=tuple(parse_seeds(arguments.seeds)),
        lora=parse_lora(arguments.lora) if arguments.lora else None,
        with_loras=tuple(map(parse_lora, arguments.with_lora)),
        output=Path(typed_path(arguments.output)),
        **{name: getattr(arguments, name) for name in names},
    )
    paths = sample_images(request)
    facts = {"pictures": [str(path) for path in paths]}
    print_result(facts, f"{len(paths)} images in {arguments.output}", arguments.json)
    return 0


def _gui(arguments: argparse.Namespace) -> int:
    """Serve the GUI until interrupted; returns the exit code."""
    try:
        from ..app.gui.app import serve
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The pages need {error.name}, which this environment lacks. Bring it up to date: "
            "python install.py setup"
        ) from error
    serve(
        listen=arguments.listen,
        port=arguments.port,
        token=arguments.token,
        open_browser=not arguments.no_browser,
    )
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from ..app.library.inspect import format_text, inspect

    facts = inspect(Path(typed_path(arguments.file)))
    text = json.dumps(facts, indent=2, ensure_ascii=False) if arguments.json else format_text(facts)
    sys.stdout.write(text + "\n")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from ..trainer.commands.demo import run_demo
    from ..trainer.commands.terminal import ProgressLine

    with ProgressLine() as line, shown_by(line.message):
        facts = run_demo(
            Path(typed_path(arguments.output)),
            steps=arguments.steps,
            overwrite=arguments.overwrite,
            on_progress=line.show,
        )
    print_result(facts.to_dict(), facts.to_text(), arguments.json)
    return 0
