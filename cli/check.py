"""The `check` command: whether a checkpoint can be distilled on this device, in fifteen minutes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..app.config.distill_config import DistillConfig
from ..app.config.presets import MEMORIES
from ..app.config.request import TeacherLora
from ..core.families import identify
from .arguments import (
    add_config_arguments,
    add_model_files,
    expanded,
    model_files,
    parse_lora,
    print_result,
    prompts_of,
)
from .settings import add_settings_option, settings_values

log = logging.getLogger("dpdmd_studio.cli")


def add_check(parser: argparse.ArgumentParser) -> None:
    """Options of the `check` command: those of `distill` that say what a run would do."""
    add_model_files(parser)
    parser.add_argument("--prompts", metavar="FILE",
                        help="the first two are drawn (default: two of our own)")  # fmt: skip
    parser.add_argument("--preset", choices=MEMORIES, help="settings for a card's memory")
    parser.add_argument("--teacher-lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a LoRA to merge into the teacher; may be repeated")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="do finished parts anew")
    add_settings_option(parser)
    add_config_arguments(parser)
    parser.set_defaults(run_command=_check)


def _check(arguments: argparse.Namespace) -> int:
    """Check and print the table; returns the exit code."""
    files = model_files(arguments)
    config = DistillConfig.from_dict(settings_values(arguments, identify(Path(files.checkpoint))))
    from ..trainer.commands.check import CheckRequest, check  # heavy

    request = CheckRequest(
        model=files,
        config=config,
        teacher_loras=tuple(
            TeacherLora(path=path, strength=strength)
            for path, strength in map(parse_lora, arguments.teacher_lora)
        ),
        prompts=expanded(prompts_of(arguments.prompts)),
        again=arguments.again,
    )
    try:
        result = check(request)
    except KeyboardInterrupt:
        log.info("What is finished is kept: the same command goes on from there.")
        raise
    text = f"{result.table}\nTable and images: {result.folder}"
    print_result(result.to_dict(), text, arguments.json)
    return 0
