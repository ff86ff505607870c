"""The data folder outside the checkout: runs, prompt cache. Reinstalling loses nothing."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

APPLICATION = "dpdmd-studio"


def home() -> Path:
    """`DPDMD_HOME`, else this platform's folder for user data."""
    named = os.environ.get("DPDMD_HOME")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(base) / APPLICATION
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / APPLICATION
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / APPLICATION


def prompt_cache() -> Path:
    """Where encoded prompts are kept."""
    return home() / "prompt-cache"


def new_run_folder(name: str) -> Path:
    """A run folder that does not exist yet, named by date, time and `name`."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain}"
    folders = (home() / "runs" / name for name in numbered(stem))
    return next(folder for folder in folders if not folder.exists())


def numbered(name: str) -> Iterator[str]:
    """`name`, then the same with -2, -3 and so on behind it: to take the first free one of."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))
