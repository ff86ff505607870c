"""The data folder outside the checkout: runs, prompt cache. Reinstalling loses nothing."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import SettingsError
from .path_checks import typed_path

APPLICATION = "dpdmd-studio"
MAX_NAME = 120
MAX_STEM_BYTES = 255 - len(".safetensors")


def home() -> Path:
    """`DPDMD_HOME`, else this platform's folder for user data."""
    named = os.environ.get("DPDMD_HOME")
    if named:
        return Path(typed_path(named))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or _own_home("AppData", "Local")
    elif sys.platform == "darwin":
        base = _own_home("Library", "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or _own_home(".local", "share")
    return Path(base) / APPLICATION


def _own_home(*folders: str) -> str:
    try:
        return os.path.join(typed_path("~"), *folders)
    except SettingsError as error:
        raise SettingsError(
            "There is no place for runs: this user has no home folder. Set the environment "
            "variable DPDMD_HOME to a folder that may be written."
        ) from error


def prompt_cache() -> Path:
    """Where encoded prompts are kept."""
    return home() / "prompt-cache"


def new_run_folder(name: str) -> Path:
    """A run folder that does not exist yet, named by date, time and `name`."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain_name(name)}"
    folders = (home() / "runs" / name for name in numbered(stem))
    return next(folder for folder in folders if not folder.exists())


def plain_name(name: str) -> str:
    """A name of letters, digits, dots and dashes for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:MAX_NAME].strip("-.") or "run"


def numbered(name: str) -> Iterator[str]:
    """`name`, then the same with -2, -3 and so on behind it: to take the first free one of.

    A name as long as a LoRA's may be gives up its last letters for the number.
    """
    yield name
    for ending in (f"-{number}" for number in itertools.count(2)):
        room = MAX_STEM_BYTES - len(ending)
        yield os.fsencode(name)[:room].decode("utf-8", "ignore") + ending
