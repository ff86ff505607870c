"""The folders that models are chosen from, what lies in them, and whether a path stays inside.

Folders are those of a ComfyUI or WebUI found around or beside this checkout, and those that the
person names. ComfyUI's extra_model_paths.yaml is not read: name such folders by hand.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import CheckpointError, SettingsError
from ...core.families import DENOISER_PREFIXES, is_model_folder
from ...core.families.lora_names import LORA_KEY
from ...core.files.tensor_file import read_model_header
from .path_checks import check_name, is_inside, resolved, typed_path

Kind = Literal["checkpoint", "lora"]
SUFFIX = ".safetensors"
FOLDERS = ("models/checkpoints", "models/Stable-diffusion", "models/loras", "models/Lora")
PLUGIN_FOLDERS = ("custom_nodes", "extensions")
HOST_NAMES = ("comfyui", "stable-diffusion-webui", "sd-webui", "webui_forge", "forge", "reforge")
# The portable packages hold the host one level further down.
INNER_FOLDERS = ("", "ComfyUI", "webui")
MAX_FOUND = 5000
"""Files listed of one folder; a tree larger than that was hardly meant."""


@dataclass(frozen=True)
class ModelFile:
    """A model that can be chosen; `label` is for people, `bytes` its size."""

    path: Path
    label: str
    bytes: int


def default_folders(checkout: Path | None = None) -> list[Path]:
    """Existing model folders of hosts around or beside the checkout, each once.

    Args:
        checkout: where this project lies; by default the one that runs.
    """
    own = Path(os.path.abspath(checkout or Path(__file__).parents[2]))
    places = {own: None, own.resolve(): None}  # it may be linked into a host's folder
    found: dict[Path, Path] = {}
    for root in (root for place in places for root in _hosts_near(place)):
        for name in FOLDERS:
            folder = root / name
            if folder.is_dir():
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _hosts_near(checkout: Path) -> Iterator[Path]:
    if checkout.parent.name in PLUGIN_FOLDERS:
        yield checkout.parents[1]
    try:
        beside = sorted(checkout.parent.iterdir())
    except OSError:
        return
    for folder in beside:
        if folder != checkout and folder.name.lower().startswith(HOST_NAMES):
            yield from (folder / inner for inner in INNER_FOLDERS)


def list_models(folders: Iterable[Path | str], kind: Kind) -> list[ModelFile]:
    """Checkpoints, or LoRAs, in these folders and below, by name.

    Diffusers folders count as checkpoints. A file whose header cannot be read is listed under
    either kind: whoever chooses it is told what is wrong with it. Links that leave the folder, and
    folders that cannot be read, are left out.
    """
    found: dict[Path, tuple[Path, str, int]] = {}
    for folder in map(Path, folders):
        for path in _models_below(folder):
            size = _size(path)
            if size is not None and _is_kind(path, size, kind):
                name = path.relative_to(folder).as_posix()
                found.setdefault(path.resolve(), (path, name, size))
    counts = Counter(name for _, name, _ in found.values())
    models = [
        ModelFile(path, _label(path, name, size, counts[name] > 1), size)
        for path, name, size in found.values()
    ]
    return sorted(models, key=lambda model: model.label.lower())


def contained(path: str, folders: Sequence[Path | str]) -> Path:
    """The model file (or diffusers folder) at `path`, with links resolved.

    Nothing outside the folders is touched, not even to see whether it is there.

    Args:
        path: absolute, or relative to one of the folders.
        folders: where models may lie.

    Raises:
        SettingsError: outside all folders, or missing.
        CheckpointError: neither a diffusers folder nor a safetensors file, whatever its ending.
    """
    check_name(path)
    allowed = [os.path.abspath(folder) for folder in folders]
    asked = typed_path(path)
    tried = [os.path.join(folder, asked) for folder in allowed]  # an absolute path stays itself
    inside = [p for p, folder in zip(tried, allowed, strict=True) if is_inside(p, folder)]
    inside += [p for p in tried[:1] for folder in allowed if is_inside(p, resolved(folder))]
    if not inside:
        raise _outside(path, allowed)
    found = next((p for p in map(resolved, inside) if os.path.exists(p)), None)
    if found is None:
        raise SettingsError(f"There is no file {path}. Choose one of the list.")
    if not any(is_inside(found, resolved(folder)) for folder in allowed):
        raise _outside(path, allowed)
    if not found.lower().endswith(SUFFIX) and not is_model_folder(Path(found)):
        read_model_header(found)  # says what it is, if it is no safetensors file
    return Path(found)


def _outside(path: str, allowed: Sequence[str]) -> SettingsError:
    named = ", ".join(allowed) or "none so far"
    return SettingsError(
        f"{path[:300]} lies outside the folders that models are taken from ({named}). Add its "
        "folder to them first."
    )


def _models_below(folder: Path) -> Iterator[Path]:
    """Files that end in .safetensors and diffusers folders; links only where they stay inside."""
    count = 0
    root = resolved(str(folder))
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        here = Path(parent)
        if is_model_folder(here):
            names.clear()
            files = []
            yield here
        for name in sorted(files):
            path = here / name
            if not name.lower().endswith(SUFFIX) or name.startswith("."):
                continue
            if path.is_symlink() and not is_inside(resolved(str(path)), root):
                continue
            count += 1
            if count > MAX_FOUND:
                return
            yield path


def _size(path: Path) -> int | None:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob(f"*{SUFFIX}"))
        return path.stat().st_size
    except OSError:
        return None


def _is_kind(path: Path, size: int, kind: Kind) -> bool:
    if path.is_dir():
        return kind == "checkpoint"
    try:
        found = _kind(str(path), size, path.stat().st_mtime_ns)
    except OSError:
        return False
    return found in (kind, "unreadable")


@functools.lru_cache(maxsize=2 * MAX_FOUND)
def _kind(path: str, size: int, changed: int) -> str:
    """What a file's header says it is; size and time of change belong to the cache's key."""
    try:
        names = read_model_header(path).tensors
    except CheckpointError:
        return "unreadable"
    if any(LORA_KEY.search(name) for name in names):
        return "lora"
    heads = (
        "input_blocks.",
        "joint_blocks.",
        "double_blocks.",
        "x_embedder.",
        "transformer_blocks.",
    )
    starts = tuple(prefix + head for prefix in DENOISER_PREFIXES for head in heads)
    prefixes = tuple(prefix for prefix in DENOISER_PREFIXES if prefix)
    return "checkpoint" if any(name.startswith(starts + prefixes) for name in names) else "other"


def _label(path: Path, name: str, size: int, ambiguous: bool) -> str:
    shown = f"{name} ({size_text(size)})"
    return f"{shown} in {path.parent}" if ambiguous else shown


def size_text(size: int) -> str:
    """Bytes as people read them, in powers of 1000 as file managers and download pages show."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
