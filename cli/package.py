"""The `package` command's options."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..app.config.request import parse_seeds
from ..app.library.path_checks import typed_path
from .arguments import MODEL_FILES, add_drawing, parse_lora, print_result, prompts_of

OPTIONS = ("count", "cover", "name", "author", "license", "trigger_words", "batch_size", "device",
           "dtype", "overwrite")  # fmt: skip


def add_package(parser: argparse.ArgumentParser) -> None:
    """Options besides those of the files that stand in for parts of the checkpoint."""
    parser.add_argument("source", metavar="LORA_OR_RUN", help="a LoRA made here, or its run folder")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?",
                        help="what it was made for; a run knows that itself")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR",
                        help="folder to make; DIR.zip is made, too")  # fmt: skip
    parser.add_argument("--prompts", metavar="FILE",
                        help="what the images show (default: the run's)")  # fmt: skip
    parser.add_argument("--count", type=int, default=8, metavar="N", help="images (default 8)")
    parser.add_argument("--seeds", default="", metavar="LIST", help="default: 0 and upwards")
    parser.add_argument("--cover", type=int, default=1, metavar="N", help="the image in front")
    parser.add_argument("--name", default="", metavar="TEXT", help="title and name of the file")
    parser.add_argument("--author", default="", metavar="TEXT")
    parser.add_argument("--license", default="", metavar="TEXT", help="your own licence for it")
    parser.add_argument("--base-model", default="", metavar="LABEL",
                        help="Civitai's label, such as Pony (default: SDXL 1.0)")  # fmt: skip
    parser.add_argument("--trigger-words", default="", metavar="LIST", help="default: needs none")
    parser.add_argument("--with-lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="a LoRA that is on as well; may be repeated")  # fmt: skip
    parser.add_argument("--report", metavar="FILE",
                        help="report.json whose numbers to quote (default: the run's)")  # fmt: skip
    add_drawing(parser, "replace an earlier package")
    parser.set_defaults(run_command=run_package)


def run_package(arguments: argparse.Namespace) -> int:
    """Make the package and say where it is; returns the exit code."""
    from ..app.share.source import PackageRequest
    from ..trainer.commands.package import package

    named = {name: getattr(arguments, name) for name in MODEL_FILES}
    request = PackageRequest(
        source=Path(typed_path(arguments.source)),
        output=Path(typed_path(arguments.output)),
        files={name: typed_path(file) for name, file in named.items() if file},
        prompts=tuple(prompts_of(arguments.prompts)),
        seeds=tuple(parse_seeds(arguments.seeds)) if arguments.seeds else (),
        label=arguments.base_model,
        with_loras=tuple(map(parse_lora, arguments.with_lora)),
        report=Path(typed_path(arguments.report)) if arguments.report else None,
        **{name: getattr(arguments, name) for name in OPTIONS},
    )
    result = package(request)
    print_result(result.to_dict(), result.to_text(), arguments.json)
    return 0
