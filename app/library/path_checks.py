"""Names and paths that somebody typed: fit for every system, and inside a folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from ...core.errors import OutputError, SettingsError

MAX_PATH_CHARACTERS, MAX_NAME_CHARACTERS = 4096, 100
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{name}{number}" for name in ("com", "lpt") for number in "0123456789¹²³"
}
SUFFIX = ".safetensors"
FORBIDDEN = '/\\:*?"<>|'


def check_name(path: str, paths: ModuleType = os.path) -> None:
    """Raise SettingsError for a text that is no path, or names a device, a share or a stream.

    Args:
        paths: the platform's path rules; `ntpath` in tests of Windows paths.
    """
    if not isinstance(path, str) or not path.strip():
        raise SettingsError("No file was named. Choose one of the list.")
    if len(path) > MAX_PATH_CHARACTERS or any(ord(character) < 32 for character in path):
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


def lora_file(folder: Path, name: object) -> Path:
    """The file of that name, with or without its ending; the folder is made if it is missing.

    Raises:
        SettingsError: no name, one with folders in it, or that of a device.
        OutputError: the folder cannot be made.
    """
    stem = str(name or "").strip().removesuffix(SUFFIX)
    bad = set(stem) & set(FORBIDDEN) or stem.startswith(".") or not stem.isprintable()
    if not stem or len(stem) > MAX_NAME_CHARACTERS or bad:
        raise SettingsError(
            f"Name the LoRA with up to {MAX_NAME_CHARACTERS} characters, without "
            f"{' '.join(FORBIDDEN)} and not beginning with a dot."
        )
    check_name(stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error}.") from error
    return folder / f"{stem}{SUFFIX}"
