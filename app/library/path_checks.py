"""Names and paths that somebody typed: fit for every system, and inside a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from ...core.errors import OutputError, SettingsError

MAX_PATH_CHARACTERS, MAX_NAME_CHARACTERS = 4096, 100
MAX_NAME_BYTES = 255
# Half characters; those from \udc80 to \udcff stand for bytes of names that are not UTF-8.
NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
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
    if NO_NAME.search(path):
        raise SettingsError("That is not a path: it holds half a character.")
    if paths.sep != "\\":
        return  # elsewhere such names are ordinary files
    for part in paths.splitdrive(path.replace("/", "\\"))[1].split("\\"):
        if part.split(".")[0].strip().lower() in DEVICES:
            raise SettingsError(f"{path} names a device of Windows, not a file. Choose another.")
        if ":" in part:
            raise SettingsError(f"{path} has a colon inside, which names no file on Windows.")
        if set(part) & set('*?"<>|'):
            raise SettingsError(f'{path} holds one of * ? " < > |, which Windows has in no name.')


def typed_path(path: str, paths: ModuleType = os.path) -> str:
    """A path that somebody typed, with a leading `~` or `~name` replaced by that home folder.

    A name that nobody here has is a file's own: `~model.safetensors` stays as it is.

    Args:
        paths: the platform's path rules.

    Raises:
        SettingsError: `~` alone, and this user has no home folder; or no drive has such a path.
    """
    parts = path.replace(paths.altsep or paths.sep, paths.sep).split(paths.sep)
    longest = max(parts, key=_name_bytes)
    if _name_bytes(longest) > MAX_NAME_BYTES or len(path) > MAX_PATH_CHARACTERS:
        raise SettingsError(
            f"{path[:60]}... names no file: drives take names of up to {MAX_NAME_BYTES} bytes, "
            f"this one has {_name_bytes(longest)}, and paths of {MAX_PATH_CHARACTERS:,} characters."
        )
    if NO_NAME.search(path):
        raise SettingsError("A path holds a zero byte or half a character, which no name has.")
    if not path.startswith("~"):
        return path
    own = path == "~" or path[1] in (paths.sep, paths.altsep)
    found = paths.expanduser(path)
    if own and (found == path or os.environ.get("HOME") == ""):
        raise SettingsError(
            f"{path} begins with ~, but this user has no home folder. Write the whole path."
        )
    return found


def _name_bytes(name: str) -> int:
    return len(name.encode("utf-8", "replace"))  # half a character stands for one byte


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
    size = _name_bytes(stem + SUFFIX)
    if size > MAX_NAME_BYTES:
        raise SettingsError(
            f"Name the LoRA shorter: {stem[:20]}... has {size} bytes with its ending, and drives "
            f"take {MAX_NAME_BYTES}. Letters beyond English have two to four bytes each."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error}.") from error
    return folder / f"{stem}{SUFFIX}"
