"""Command-line options that several commands share; those of the settings come from their class."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..app.config.distill_config import REMOVED, DistillConfig
from ..core.errors import SettingsError

GROUP_TITLES = {
    "teacher": "the teacher",
    "student": "the student and its objective",
    "training": "training",
    "machine": "the machine",
}


def add_model_files(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, and the files that stand in for parts of it."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".safetensors or diffusers folder")
    add_other_files(parser)


def add_other_files(parser: argparse.ArgumentParser) -> None:
    """Files that stand in for parts of a checkpoint."""
    parser.add_argument("--clip-l", metavar="FILE", help="CLIP-L text encoder")
    parser.add_argument("--clip-g", metavar="FILE", help="CLIP-G text encoder")
    parser.add_argument("--t5", metavar="FILE", help="T5-XXL text encoder")
    parser.add_argument("--vae", metavar="FILE", help="VAE for images (training needs none)")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per setting of DistillConfig; absent options stay out of the namespace."""
    groups = {
        name: parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
        for name, title in GROUP_TITLES.items()
    }
    for spec in dataclasses.fields(DistillConfig):
        option = "--" + spec.name.replace("_", "-")
        group = groups[spec.metadata["group"]]
        text = f"{spec.metadata['help']} (default: {_shown(spec.default)})".replace("%", "%%")
        if isinstance(spec.default, bool):
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        elif spec.metadata["choices"]:
            group.add_argument(option, choices=spec.metadata["choices"], help=text)
        else:
            kind = type(spec.default)
            metavar = {int: "N", float: "X", str: "TEXT"}[kind]
            group.add_argument(option, type=kind, metavar=metavar, help=text)
    for name in REMOVED:  # taken, and answered as a settings file that names them is
        groups["machine"].add_argument(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            help=argparse.SUPPRESS,
        )


def _shown(value: Any) -> str:
    return (
        repr(value) if value == "" else str(value).lower() if value in (True, False) else str(value)
    )


def config_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were named on the command line, those of earlier versions, too."""
    names = {*REMOVED, *(spec.name for spec in dataclasses.fields(DistillConfig))}
    return {name: value for name, value in vars(arguments).items() if name in names}


def parse_lora(text: str) -> tuple[str, float]:
    """(file, strength) of "FILE" or "FILE:0.8"; a drive letter's colon is no strength."""
    name, colon, tail = text.rpartition(":")
    if not colon or not name or (len(name) == 1 and tail.startswith(("\\", "/"))):
        return text, 1.0
    try:
        strength = float(tail)
    except ValueError:
        return text, 1.0
    if not -10 <= strength <= 10:
        raise SettingsError(f"LoRA strength {tail} is outside -10 to 10.")
    return name, strength
