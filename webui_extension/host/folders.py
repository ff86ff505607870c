"""Model files, styles and extensions of the web UI."""

# pyright: reportMissingImports=false

from __future__ import annotations

from itertools import chain
from pathlib import Path

FOLDER_OPTIONS = ("ckpt_dir", "lora_dir", "vae_dir", "text_encoder_dir")
"""One folder each; Forge Neo has each in the plural as well, a list."""


def model_folders() -> list[Path]:
    """Folders in which the host looks for checkpoints, LoRAs, VAEs and text encoders."""
    from modules import paths, sd_models, shared

    named = [getattr(shared.cmd_opts, name, None) for name in FOLDER_OPTIONS]
    several = [getattr(shared.cmd_opts, f"{name}s", None) or [] for name in FOLDER_OPTIONS]
    models = Path(paths.models_path)
    usual = [sd_models.model_path, *(models / name for name in ("VAE", "text_encoder", "Lora"))]
    every = [Path(folder) for folder in (*named, *chain.from_iterable(several), *usual) if folder]
    return list({folder.resolve(): folder for folder in every if folder.is_dir()}.values())


def lora_folder() -> Path:
    """Where the host looks for LoRAs."""
    from modules import paths, shared

    return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")


def lora_folders() -> list[Path]:
    """All folders from which the host's prompts can call LoRAs."""
    from modules import shared

    return [lora_folder(), *map(Path, getattr(shared.cmd_opts, "lora_dirs", None) or [])]


def chosen_checkpoint() -> Path | None:
    """The file of the checkpoint that is chosen in the host; None for none, or another format."""
    from modules import sd_models, shared

    title = getattr(shared.opts, "sd_model_checkpoint", None)
    find = getattr(sd_models, "get_closet_checkpoint_match", None)
    info = find(title) if title and find is not None else None
    path = Path(info.filename) if info is not None else None
    return path if path is not None and path.suffix == ".safetensors" and path.is_file() else None


def checkpoints() -> list[Path]:
    """The files of the host's list that could be trained on."""
    from modules import sd_models

    paths = [Path(info.filename) for info in sd_models.checkpoints_list.values()]
    return [path for path in paths if path.suffix == ".safetensors"]


def style_prompts() -> list[str]:
    """The prompts of the styles that the user saved."""
    from modules import shared

    styles = getattr(getattr(shared, "prompt_styles", None), "styles", {})
    return [str(style.prompt or "") for style in styles.values()]


def extension_folders() -> list[tuple[str, Path]]:
    """(name, folder) of the extensions that are switched on."""
    from modules import extensions

    return [(str(found.name), Path(found.path)) for found in extensions.active()]
