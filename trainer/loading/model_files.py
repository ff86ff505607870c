"""The files that a request names, as loading wants them."""

from __future__ import annotations

from pathlib import Path

from ...app.config.request import ModelFiles

ZERO_SNR = {"auto": None, "yes": True, "no": False}


def model_name(path: Path) -> str:
    """A file's name without its ending, a folder's whole name (which may hold a version)."""
    return path.name if path.is_dir() else path.stem


def text_encoder_files(files: ModelFiles) -> dict[str, Path]:
    """The text-encoder files that were named, by encoder."""
    named = {"clip_l": files.clip_l, "clip_g": files.clip_g, "t5xxl": files.t5}
    return {name: Path(file) for name, file in named.items() if file}
