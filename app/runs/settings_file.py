"""Settings that people share: a small JSON file, or the settings that a LoRA carries.

Neither holds a path of the machine or the prompts that were trained on; the teacher's negative
prompt is a setting and is kept. Whatever is read here may come from a stranger: its size and every
value are checked before they count.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...core.errors import SettingsError
from ...core.files.tensor_file import read_header
from ...core.lora.metadata import SETTINGS_KEY
from ..config.distill_config import DistillConfig, without_removed
from ..config.knobs import AUTO
from ..config.request import DistillRequest
from ..library.path_checks import typed_path
from .directory import RunDirectory

KIND, VERSION = "dpdmd.settings", 1
MAX_BYTES = 256 * 1024
MAX_CHARACTERS = {"teacher_negative": 10_000}
MAX_OTHER_CHARACTERS = 500
MAX_WHOLE_NUMBER = 2**63
SHOWN_NAMES, SHOWN_CHARACTERS = 5, 60
COMPRESSED = (b"\x1f\x8b", b"PK", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"7z\xbc\xaf", b"Rar!")
GENERATOR = f"DP-DMD Studio {__version__}"


def config_text(config: DistillConfig) -> str:
    """All settings as a file to share; the device, which is a fact of the machine, is left open."""
    facts = {
        "kind": KIND,
        "version": VERSION,
        "generator": GENERATOR,
        "config": _portable(config).to_file(),
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def read_settings(path: Path) -> DistillConfig:
    """The settings in a settings file, in a LoRA made here, or of a run's folder.

    Raises:
        DPDMDError: nothing there, or what is there holds no settings that can be used.
    """
    path = Path(typed_path(str(path)))
    if os.path.isdir(path):
        return DistillRequest.from_dict(RunDirectory.open(path).settings()).config
    return (
        settings_of_lora(path) if path.suffix.lower() == ".safetensors" else import_settings(path)
    )


def import_settings(text_or_path: str | Path) -> DistillConfig:
    """The settings in a file, or in its text (which begins with a brace).

    A setting that the file does not name has its default.

    Raises:
        SettingsError: no such file, too large, compressed, not a settings file, of a newer version,
            or a setting that is unknown or not allowed.
    """
    if isinstance(text_or_path, str) and text_or_path.lstrip("\ufeff \t\r\n").startswith("{"):
        name, text = "The text", text_or_path.lstrip("\ufeff")
    else:
        path = Path(text_or_path)
        name, text = shown(path.name), _read(path)
    facts = parse_table(text, name)
    if facts.get("kind") != KIND:
        raise SettingsError(
            f"{name} is not a settings file of DP-DMD Studio (its kind is "
            f"{shown(facts.get('kind'))}; {KIND} was expected). Make one with "
            "`dpdmd-studio settings export` from a run or a LoRA."
        )
    generator = shown(facts.get("generator", "an unknown program"))
    if type(facts.get("version")) is not int or facts["version"] != VERSION:
        raise SettingsError(
            f"{name} is in format {shown(facts.get('version'))}; this version reads format "
            f"{VERSION}. It was written by {generator}; update DP-DMD Studio to read it."
        )
    config = facts.get("config")
    if not isinstance(config, dict):
        raise SettingsError(f"{name} holds no table of settings named config. Export it again.")
    return checked_config(config, name, generator)


def settings_of_lora(path: Path) -> DistillConfig:
    """The settings that a LoRA made here was trained with, for "distil again like this".

    Raises:
        CheckpointError: the file is missing, damaged, or not safetensors.
        SettingsError: it carries no settings, or hostile or unknown ones.
    """
    metadata = read_header(path).metadata
    name = shown(Path(path).name)
    text = metadata.get(SETTINGS_KEY)
    if text is None:
        raise SettingsError(
            f"{name} carries no settings: it was not made by DP-DMD Studio, or its metadata was "
            "taken out. Choose a LoRA that was made here, or a settings file."
        )
    generator = shown(metadata.get("modelspec.implementation_version", "an unknown version"))
    return checked_config(parse_table(text, f"{name}: its {SETTINGS_KEY}"), name, generator)


def parse_table(text: str, name: str) -> dict[str, Any]:
    """The JSON object in `text`, or SettingsError; `name` begins the message.

    Refused are more than MAX_BYTES, nesting deeper than JSON is read here, a name given twice, and
    numbers that are none.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise SettingsError(
            f"{name} has {size:,} bytes; settings take up to {MAX_BYTES:,}. It is not read."
        )
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise SettingsError(
            f"{name} is nested deeper than settings ever are. It is not read."
        ) from error
    except ValueError as error:
        raise SettingsError(f"{name} is not valid JSON: {shown(error, 120)}.") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{name} is JSON, but not a table of names and values.")
    return found


def checked_config(values: Mapping[str, Any], name: str, generator: str) -> DistillConfig:
    """The settings of a table of a stranger's; `name` and `generator` are for messages.

    Raises:
        SettingsError: an unknown setting, a wrong type, or a value that is not allowed.
    """
    values = without_removed(values)
    known = {spec.name for spec in dataclasses.fields(DistillConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(
            f"{name} names settings that this version does not know: {_listed(unknown)}. It was "
            f"written by {generator}. If that is newer than {GENERATOR}, update DP-DMD Studio; "
            "otherwise take these settings out of the file."
        )
    for key, value in values.items():
        _check_plain(name, key, value)
    try:
        return _portable(DistillConfig.from_dict(values))
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """A stranger's value in a message: on one line, printable, and short."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _portable(config: DistillConfig) -> DistillConfig:
    return dataclasses.replace(config, device=AUTO)


def _read(path: Path) -> str:
    name = shown(path.name)
    try:
        if not os.path.isfile(path):
            raise SettingsError(f"There is no settings file {shown(path, 300)}. Check the path.")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name} cannot be read: {error}. Check the path.") from error
    if content.startswith(COMPRESSED):
        raise SettingsError(
            f"{name} is a compressed file. Unpack it first and name the settings file inside it."
        )
    if len(content) > MAX_BYTES:
        raise SettingsError(
            f"{name} has more than {MAX_BYTES:,} bytes, which no settings file has. Is it the "
            "right file?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not UTF-8 text. Export the settings again.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"given twice: {_listed(twice)}")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check_plain(name: str, key: str, value: object) -> None:
    """Only text, whole numbers, numbers and true or false, of a size that settings have."""
    problem = ""
    if isinstance(value, str):
        limit = MAX_CHARACTERS.get(key, MAX_OTHER_CHARACTERS)
        if len(value) > limit:
            problem = f"has {len(value):,} characters; up to {limit:,} are allowed"
        elif any("\ud800" <= character <= "\udfff" for character in value):
            problem = "holds half a character (a lone surrogate)"
    elif isinstance(value, int) and abs(value) >= MAX_WHOLE_NUMBER:
        problem = "is a huge whole number"
    elif not isinstance(value, bool | int | float):
        problem = f"is a {type(value).__name__}; text or a number was expected"
    if problem:
        raise SettingsError(f"{name}: {key} {problem}.")


def _listed(names: Iterable[str]) -> str:
    found = [shown(name) for name in names]
    more = f" and {len(found) - SHOWN_NAMES} others" if len(found) > SHOWN_NAMES else ""
    return ", ".join(found[:SHOWN_NAMES]) + more
