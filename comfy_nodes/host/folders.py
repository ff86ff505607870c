"""The folders of ComfyUI and the files that it lists in them."""

# pyright: reportMissingImports=false

from __future__ import annotations

from pathlib import Path

from ...core.errors import SettingsError
from . import is_here

MODEL_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras")


def file_names(kind: str) -> list[str]:
    """Files of a folder type ("checkpoints", "loras") as the host lists them; none outside it."""
    if not is_here():
        return []
    import folder_paths

    return list(folder_paths.get_filename_list(kind))


def file_path(kind: str, name: str) -> Path:
    """Where a listed file lies; SettingsError if it has gone."""
    import folder_paths

    found = folder_paths.get_full_path(kind, name)
    if found is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise SettingsError(
            f"{name} is not among the {kind}. It was moved or deleted, or never was in {folders}. "
            "Press R to refresh the lists and choose another."
        )
    return Path(found)


def paths(*kinds: str) -> list[Path]:
    """Folders of those types, each once, as the host names them; types it lacks have none."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    named = [folder_paths.get_folder_paths(kind) for kind in kinds if kind in known]
    return [Path(path) for path in dict.fromkeys(path for paths in named for path in paths)]


def listed_name(kind: str, path: Path) -> str:
    """How the host's list names a file, which is looked at anew; its file name if it has none."""
    import folder_paths

    folder_paths.filename_list_cache.pop(kind, None)
    for folder in paths(kind):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return path.name


def input_folder() -> Path:
    """Where the host looks for files that nodes read."""
    import folder_paths

    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    """Where the host saves images."""
    import folder_paths

    return Path(folder_paths.get_output_directory())
