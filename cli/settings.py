"""The `settings` command, and `distill --settings`: settings from a file, a LoRA or a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..app.config.presets import preset
from ..app.library.path_checks import typed_path
from ..app.runs.settings_file import config_text, read_settings
from ..core.errors import OutputError
from ..core.families import Detection
from ..core.files import atomic_write
from .arguments import config_values, print_result

SOURCES = "a settings file, a LoRA that was made here, or a run's folder"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The `settings` command with its own commands."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write settings to share: no paths, no prompts")
    export.add_argument("source", metavar="RUN|LORA", help=SOURCES)
    export.add_argument("--output", metavar="FILE", help="default: print them")
    export.add_argument("--overwrite", action="store_true", help="replace the file")
    export.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                        help="print the file's name as JSON")  # fmt: skip
    export.set_defaults(run_command=_export)


def add_settings_option(parser: argparse.ArgumentParser) -> None:
    """`--settings` of the distill command."""
    parser.add_argument("--settings", metavar="FILE",
                        help=f"begin with the settings of {SOURCES}; a preset and options given "
                        "by hand win")  # fmt: skip


def settings_values(arguments: argparse.Namespace, model: Detection) -> dict[str, Any]:
    """The settings of `--settings`, over them those of `--preset`, over both the options.

    Raises:
        DPDMDError: the file cannot be used, or there is no such preset for the model.
    """
    values = (
        read_settings(Path(typed_path(arguments.settings))).to_dict() if arguments.settings else {}
    )
    if arguments.preset:
        values |= preset(model.family, model.title, arguments.preset)
    return values | config_values(arguments)


def _export(arguments: argparse.Namespace) -> int:
    text = config_text(read_settings(Path(typed_path(arguments.source))))
    if not arguments.output:
        sys.stdout.write(text)
        return 0
    output = Path(typed_path(arguments.output))
    if output.exists() and not arguments.overwrite:
        raise OutputError(f"{output} exists already. Add --overwrite, or name another --output.")
    atomic_write.write_text(output, text)
    print_result({"settings": str(output)}, f"Settings: {output}", arguments.json)
    return 0
