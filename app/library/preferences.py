"""What the screens remember from one day to the next: preferences.json in the data folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import OutputError, SettingsError
from ...core.files import atomic_write
from .home import home

FILE, SET_ASIDE = "preferences.json", "preferences.damaged.json"
VERSION = 1
MAX_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What a person chose before. Immutable; `remember` changes and saves.

    Args:
        folders: folders with models that the person named.
        output_folder: where new LoRAs go; empty if never chosen.
        distill: the last values of the Distill page by name, plain JSON.
        note: what a person should know of how they were read; never saved.
    """

    folders: tuple[str, ...] = ()
    output_folder: str = ""
    distill: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def load() -> Preferences:
    """The saved preferences; defaults if there are none, or with a note if they are unusable.

    A damaged file is set aside beside its place, so nothing in it is lost.
    """
    path = home() / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return Preferences()
    except OSError as error:
        return Preferences(
            note=f"{path} cannot be read ({error.strerror or error}); defaults are used."
        )
    except (ValueError, RecursionError) as error:
        return Preferences(note=_set_aside(path, str(error)[:200]))


def save(preferences: Preferences) -> None:
    """Write the preferences.

    Raises:
        SettingsError: they are too large, or hold something that JSON cannot.
        OutputError: the data folder cannot be written.
    """
    facts = dataclasses.asdict(preferences)
    del facts["note"]
    try:
        text = json.dumps({"version": VERSION, **facts}, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"The preferences cannot be saved as JSON: {error}.") from error
    if len(text) > MAX_BYTES:
        raise SettingsError(
            f"The preferences have {len(text) >> 20} MiB; up to {MAX_BYTES >> 20} are kept. Name a "
            "prompts file in place of long prompts."
        )
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The data folder {folder} cannot be made: {error}.") from error
    atomic_write.write_text(folder / FILE, text + "\n")


def remember(**changes: Any) -> Preferences:
    """The saved preferences with these fields changed, saved again; errors as `save`."""
    changed = dataclasses.replace(load(), **changes)
    save(changed)
    return changed


def _parsed(content: bytes) -> Preferences:
    """Preferences of a file's bytes, or ValueError saying what is wrong with them."""
    facts = json.loads(content)
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        raise ValueError(f"not preferences in format {VERSION}")
    folders, output, distill = (facts.get(k) for k in ("folders", "output_folder", "distill"))
    if not isinstance(folders, list) or not all(isinstance(item, str) for item in folders):
        raise ValueError("folders is not a list of texts")
    if not isinstance(output, str):
        raise ValueError("output_folder is not a text")
    if not isinstance(distill, dict):
        raise ValueError("distill is not a table")
    return Preferences(folders=tuple(folders), output_folder=output, distill=distill)


def _set_aside(path: Path, reason: str) -> str:
    """Move a damaged file out of the way; what a person should know of it."""
    kept = path.with_name(SET_ASIDE)
    with contextlib.suppress(OSError):
        atomic_write.replace(path, kept)
        return f"{path} was damaged ({reason}); it is kept as {kept.name}, and defaults are used."
    return f"{path} is damaged ({reason}) and cannot be moved away; defaults are used."
