"""Where a new LoRA is written: a name that every system takes, in a folder that is there."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import OutputError, SettingsError
from .path_checks import check_name

SUFFIX = ".safetensors"
MAX_CHARACTERS = 100
FORBIDDEN = '/\\:*?"<>|'


def lora_file(folder: Path, name: object) -> Path:
    """The file of that name, with or without its ending; the folder is made if it is missing.

    Raises:
        SettingsError: no name, one with folders in it, or that of a device.
        OutputError: the folder cannot be made.
    """
    stem = str(name or "").strip().removesuffix(SUFFIX)
    bad = set(stem) & set(FORBIDDEN) or stem.startswith(".") or not stem.isprintable()
    if not stem or len(stem) > MAX_CHARACTERS or bad:
        raise SettingsError(
            f"Name the LoRA with up to {MAX_CHARACTERS} characters, without "
            f"{' '.join(FORBIDDEN)} and not beginning with a dot."
        )
    check_name(stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error}.") from error
    return folder / f"{stem}{SUFFIX}"
