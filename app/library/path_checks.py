"""Whether a path that somebody typed stays inside a folder, by Windows' rules as well."""

from __future__ import annotations

import os
from types import ModuleType

from ...core.errors import SettingsError

MAX_CHARACTERS = 4096
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{name}{number}" for name in ("com", "lpt") for number in "0123456789¹²³"
}


def check_name(path: str, paths: ModuleType = os.path) -> None:
    """Raise SettingsError for a text that is no path, or names a device, a share or a stream.

    Args:
        paths: the platform's path rules; `ntpath` in tests of Windows paths.
    """
    if not isinstance(path, str) or not path.strip():
        raise SettingsError("No file was named. Choose one of the list.")
    if len(path) > MAX_CHARACTERS or any(ord(character) < 32 for character in path):
        raise SettingsError("That is not a path: it is too long, or holds control characters.")
    if paths.sep != "\\":
        return  # elsewhere such names are ordinary files
    for part in paths.splitdrive(path.replace("/", "\\"))[1].split("\\"):
        if part.split(".")[0].strip().lower() in DEVICES:
            raise SettingsError(f"{path} names a device of Windows, not a file. Choose another.")
        if ":" in part:
            raise SettingsError(f"{path} has a colon inside, which names no file on Windows.")


def is_inside(path: str, folder: str, paths: ModuleType = os.path) -> bool:
    """Whether `path`, with its `..` carried out, lies below `folder`; touches no disk.

    Both must be absolute. Links are for the caller to resolve.
    """
    path, folder = (paths.normcase(paths.normpath(text)) for text in (path, folder))
    if not paths.isabs(path) or not paths.isabs(folder):
        return False
    try:
        return path != folder and paths.commonpath([path, folder]) == folder
    except ValueError:  # another drive, or a share against a drive
        return False


def resolved(path: str) -> str:
    """The absolute path with all links followed; as it stands where that fails."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.path.abspath(path)
