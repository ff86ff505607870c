"""Command-line options that several commands share; those of the settings come from their class."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ..app.config.distill_config import REMOVED, DistillConfig
from ..app.config.found_files import completed
from ..app.config.request import OTHER_FILES, ModelFiles
from ..app.library.path_checks import typed_path
from ..core.errors import SettingsError

log = logging.getLogger("dpdmd_studio.cli")
TEXTS = ("prompt", "negative", "teacher_negative", "name", "author", "license", "trigger_words",
         "base_model", "title")  # fmt: skip
MODEL_FILES = ("checkpoint", *OTHER_FILES)
GROUP_TITLES = {
    "teacher": "the teacher",
    "student": "the student and its objective",
    "training": "training",
    "machine": "the machine",
}


class Once(argparse.Action):
    """Keeps a file, and refuses a second one in its place: whoever names two wants both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep it; argparse's contract."""
        given = getattr(namespace, self.dest)
        if given not in (None, values):
            raise argparse.ArgumentError(
                self, f"given twice, as {given} and as {values}; expected once"
            )
        setattr(namespace, self.dest, values)


def add_model_files(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, and the files that stand in for parts of it."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".safetensors or diffusers folder")
    add_other_files(parser)


def add_other_files(parser: argparse.ArgumentParser) -> None:
    """Files that stand in for parts of a checkpoint."""
    for name, title in OTHER_FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=title)


def model_files(arguments: argparse.Namespace) -> ModelFiles:
    """The files that `add_model_files` asked for, and those found for what is missing.

    Raises:
        CheckpointError: several text encoders fit.
    """
    named = {name: getattr(arguments, name) for name in MODEL_FILES}
    return completed(ModelFiles(**{name: f and typed_path(f) for name, f in named.items()}))


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """What the checkpoint predicts, where its file does not say it."""
    parser.add_argument("--prediction", choices=("auto", "eps", "v", "flow"), default="auto")
    parser.add_argument("--zero-terminal-snr", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--shift", type=float, default=0.0, metavar="X",
                        help="of a flow; default: the file's or the family's")  # fmt: skip


def add_drawing(parser: argparse.ArgumentParser, overwrite: str) -> None:
    """Where and how many images are drawn at a time.

    Args:
        overwrite: what --overwrite does, in words.
    """
    formats = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=formats, default="auto")
    parser.add_argument("--overwrite", action="store_true", help=overwrite)


def prompts_of(path: str | None) -> list[str]:
    """The prompts in a file, or none without a path; what is to be known of them is logged."""
    if not path:
        return []
    from ..app.prompts.reading import read_prompts

    listed = read_prompts(Path(typed_path(path)))
    for note in listed.notes:
        log.info("%s", note)
    return list(listed.prompts)


def expanded(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts with one choice made of every alternative, always the same."""
    from ..app.prompts.expansion import expand

    return tuple(expand(text, Random(number)) for number, text in enumerate(prompts))


def require_text(arguments: argparse.Namespace) -> None:
    """Raise SettingsError for bytes that are no text where text is asked for.

    A terminal hands such bytes on as half characters; in a file's name they are in order.
    """
    for name in TEXTS:
        texts = getattr(arguments, name, None) or ""  # a list of them where it may be repeated
        if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
            raise SettingsError(
                f"--{name.replace('_', '-')} holds bytes that are no text in this terminal's "
                "encoding. Write it in UTF-8."
            )


def print_result(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print what a command found: its facts as JSON, or the text."""
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")


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
        return typed_path(text), 1.0
    try:
        strength = float(tail)
    except ValueError:
        return typed_path(text), 1.0
    if not -10 <= strength <= 10:
        raise SettingsError(f"LoRA strength {tail} is outside -10 to 10.")
    return typed_path(name), strength
