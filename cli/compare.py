"""The `compare` command's options."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from random import Random

from ..app.config.request import ModelFiles, parse_seeds
from .arguments import parse_lora

OPTIONS = ("steps", "teacher_steps", "guidance_scale", "negative", "baseline", "resolution",
           "prediction", "zero_terminal_snr", "batch_size", "device", "dtype",
           "overwrite")  # fmt: skip
log = logging.getLogger("dpdmd_studio.cli")


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
    parser.add_argument("--teacher-steps", type=int, metavar="N", help="default: as in training")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="of the teacher")
    parser.add_argument("--negative", default="", metavar="TEXT", help="of the teacher")
    parser.add_argument("--rival", dest="baseline", action=argparse.BooleanOptionalAction,
                        default=True,
                        help="also draw each LoRA switched off at its first step")  # fmt: skip
    parser.add_argument("--features", metavar="DIR",
                        help="DINO or CLIP folder to measure diversity with")  # fmt: skip
    parser.add_argument("--resolution", default="", metavar="WxH")
    parser.add_argument("--prediction", choices=("auto", "eps", "v", "flow"), default="auto")
    parser.add_argument("--zero-terminal-snr", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    parser.set_defaults(run_command=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Compare and print the table; returns the exit code."""
    from ..app.prompts.expansion import expand
    from ..trainer.commands.compare import CompareRequest, compare

    def prompts(path: str | None) -> tuple[str, ...]:
        return _prompts(Path(path)) if path else ()

    names = ("checkpoint", "clip_l", "clip_g", "t5", "vae")
    request = CompareRequest(
        model=ModelFiles(**{name: getattr(arguments, name) for name in names}),
        loras=tuple(parse_lora(text) for text in arguments.lora),
        with_loras=tuple(map(parse_lora, arguments.with_lora)),
        output=Path(arguments.output),
        prompts=tuple(
            expand(text, Random(number)) for number, text in enumerate(prompts(arguments.prompts))
        ),
        training_prompts=prompts(arguments.training_prompts),
        seeds=tuple(parse_seeds(arguments.seeds)),
        features=Path(arguments.features) if arguments.features else None,
        **{name: getattr(arguments, name) for name in OPTIONS},
    )
    result = compare(request)
    sys.stdout.write(json.dumps(result.to_dict()) if arguments.json else result.to_text())
    sys.stdout.write("\n")
    return 0


def _prompts(path: Path) -> tuple[str, ...]:
    from ..app.prompts.reading import read_prompts

    listed = read_prompts(path)
    for note in listed.notes:
        log.info("%s", note)
    return tuple(listed.prompts)
