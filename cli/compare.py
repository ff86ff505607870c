"""The `compare` command's options."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..app.config.request import parse_seeds
from ..app.library.path_checks import typed_path
from .arguments import (
    add_drawing,
    add_prediction,
    expanded,
    model_files,
    parse_lora,
    print_result,
    prompts_of,
)

OPTIONS = ("steps", "teacher_steps", "guidance_scale", "negative", "baseline", "resolution",
           "prediction", "zero_terminal_snr", "shift", "batch_size", "device", "dtype",
           "overwrite")  # fmt: skip


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Options besides those of the model's files."""
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a few-step LoRA; may be given several times")  # fmt: skip
    parser.add_argument("--with-lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a style LoRA that is on in every arm; may be repeated")  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE",
                        help="new to training; embedded checkpoints need none")  # fmt: skip
    parser.add_argument("--training-prompts", metavar="FILE", help="leave out what stands in here")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    parser.add_argument("--seeds", default="0-8", metavar="LIST", help="default 0-8")
    parser.add_argument("--steps", type=int, metavar="N", help="default: each LoRA's own, or 4")
    parser.add_argument(
        "--teacher-steps", type=int, metavar="N", help="default: 28, or more if trained so"
    )
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="of the teacher")
    parser.add_argument("--negative", default="", metavar="TEXT", help="of the teacher")
    parser.add_argument("--rival", dest="baseline", action=argparse.BooleanOptionalAction,
                        default=True,
                        help="also draw each LoRA switched off at its first step")  # fmt: skip
    parser.add_argument("--features", metavar="DIR",
                        help="DINO or CLIP folder to measure diversity with")  # fmt: skip
    parser.add_argument("--resolution", default="", metavar="WxH")
    add_prediction(parser)
    add_drawing(parser, "replace an earlier report")
    parser.set_defaults(run_command=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compare and print the table; returns the exit code."""
    from ..trainer.commands.compare import CompareRequest, compare

    request = CompareRequest(
        model=model_files(arguments),
        loras=tuple(map(parse_lora, arguments.lora)),
        with_loras=tuple(map(parse_lora, arguments.with_lora)),
        output=Path(typed_path(arguments.output)),
        prompts=expanded(prompts_of(arguments.prompts)),
        training_prompts=tuple(prompts_of(arguments.training_prompts)),
        seeds=tuple(parse_seeds(arguments.seeds)),
        features=Path(typed_path(arguments.features)) if arguments.features else None,
        **{name: getattr(arguments, name) for name in OPTIONS},
    )
    result = compare(request)
    print_result(result.to_dict(), result.to_text(), arguments.json)
    return 0
