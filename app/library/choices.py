"""What the pages choose from: folders, checkpoints, LoRAs, starter prompts. Headers only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...core.errors import PromptError, SettingsError
from ...core.families import stated_settings
from . import preferences, surroundings
from .home import home, numbered
from .model_folders import ModelFile, contained, default_folders, list_models
from .path_checks import check_name, is_inside, lora_file, resolved, typed_path

Choices = list[tuple[str, str]]
"""(what people read, the value) of a dropdown."""

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "trainer" / "assets"
TEMPLATES = ROOT / "app" / "prompts" / "templates"
HOSTS = "host:"
"""Before the name of a list of prompts that a host holds."""
EMBEDDED = {
    "emoji-sd3.safetensors": "Emoji demo, flow (SD3 layout, 27 MB)",
    "emoji-sd1.safetensors": "Emoji demo, eps (SD1 layout, 17 MB)",
}
STARTERS: Choices = [
    ("Photographs", "photo"),
    ("Drawings and paintings", "illustration"),
    ("Tags (anime models)", "tags"),
    ("Emoji (for the demo checkpoints)", "emoji"),
]


def folders() -> list[Path]:
    """Folders that models may be chosen from: the person's, those of hosts nearby, our own."""
    if not surroundings.current.listed:
        return [ASSETS]
    named = [Path(folder) for folder in preferences.load().folders]
    found = [*surroundings.current.folders(), *default_folders()]
    loras = [output_folder(), home() / "loras"]
    every = [*named, *found, *loras, ASSETS]
    return [folder for folder in dict.fromkeys(every) if folder.is_dir()]


def output_folder() -> Path:
    """Where new LoRAs go unless another folder is named: a host's own folder comes first."""
    hosts = surroundings.current.lora_folder()
    if hosts is not None:
        return hosts
    chosen = preferences.load().output_folder
    return Path(chosen) if chosen else home() / "loras"


def checkpoints() -> Choices:
    """Checkpoints of all folders; the embedded demo ones come last."""
    listed = list_models([folder for folder in folders() if folder != ASSETS], "checkpoint")
    known = {str(model.path) for model in listed}
    linked = [path for path in _hosts_files() if str(path) not in known]
    linked = [(f"{path.name} (linked)", str(path)) for path in linked]
    return (
        _choices(listed)
        + linked
        + [(label, str(ASSETS / name)) for name, label in EMBEDDED.items()]
    )


def loras(made: Mapping[str, str]) -> Choices:
    """LoRAs of all folders, those in front that runs made.

    Args:
        made: the label of each of those by path (`jobs.made_loras`).
    """
    others = [m for m in list_models(folders(), "lora") if str(m.path) not in made]
    return [(label, path) for path, label in made.items()] + _choices(others)


def _choices(models: Iterable[ModelFile]) -> Choices:
    return [(model.label, str(model.path)) for model in models]


def _hosts_files() -> list[Path]:
    """Checkpoints that the host lists though they are links that leave its folders."""
    if not surroundings.current.listed:
        return []
    return [path for path in surroundings.current.checkpoints() if path.is_symlink()]


def model_path(text: object) -> Path:
    """The model file a person chose or typed, or SettingsError if it is outside the folders."""
    linked = next((path for path in _hosts_files() if str(path) == text), None)
    if linked is not None and linked.is_file():
        return linked.resolve()
    return contained(str(text or ""), folders())


def lora_path(text: object, made: Mapping[str, str]) -> Path:
    """A LoRA that a run wrote (`jobs.made_loras`), wherever that was, or one in the folders."""
    known = {value for _, value in loras(made)}
    return Path(str(text)) if str(text) in known else model_path(text)


def prompts_path(text: object) -> Path:
    """A text file, or a folder of images, inside one of the folders.

    Raises:
        SettingsError: outside of them.
    """
    name = str(text or "").strip().strip('"')
    check_name(name)
    path = resolved(typed_path(name))
    places = [resolved(str(folder)) for folder in folders()]
    if not any(path == place or is_inside(path, place) for place in places):
        raise SettingsError(
            f"{name} lies outside the folders that are read here. Add its folder under "
            '"Folders and other model files", or paste the prompts.'
        )
    return Path(path)


def is_embedded(path: Path) -> bool:
    """Whether the checkpoint is one of the demo's."""
    return bool(embedded_world(path))


def is_demo(teacher_name: str) -> bool:
    """Whether a LoRA whose recipe names that teacher was distilled from a demo checkpoint."""
    return f"{teacher_name}.safetensors" in EMBEDDED


def embedded_worlds() -> set[str]:
    """What the demo's checkpoints draw."""
    return {world for name in EMBEDDED if (world := embedded_world(ASSETS / name))}


def embedded_world(path: Path) -> str:
    """What a checkpoint of the demo draws, which is also the name of its starter prompts; or ""."""
    return str(stated_settings(path).get("world", ""))


def add_folder(text: object) -> Path:
    """Remember a folder with models; its absolute path.

    Raises:
        SettingsError: no such folder, or a path that is none.
    """
    path = _local_folder(text)
    if not path.is_dir():
        raise SettingsError(f"There is no folder {path}. Name an existing folder with models.")
    known = preferences.load().folders
    preferences.remember(folders=tuple(dict.fromkeys([*known, str(path)])))
    return path


def forget_folder(text: object) -> None:
    """Forget a folder; the files in it stay."""
    known = preferences.load().folders
    preferences.remember(folders=tuple(folder for folder in known if folder != text))


def _local_folder(text: object) -> Path:
    name = str(text or "").strip()
    check_name(name)
    path = Path(typed_path(name))
    if name.startswith(("\\\\", "//")):
        raise SettingsError(f"{name} is a network address. Name a folder of this computer.")
    if not path.is_absolute():
        raise SettingsError(f"{name} is not a whole path. Write it from the root or drive on.")
    return path.resolve()


def chosen_output(folder: object, name: object) -> Path:
    """The file that a new LoRA is written to; its folder is made if only that is missing.

    Raises:
        SettingsError, OutputError: a name with folders in it, or no place to write.
    """
    return lora_file(_local_folder(folder or output_folder()), name)


def free_output(folder: object, name: str) -> str:
    """`name`, or with a number behind it the first that no file has yet."""
    place = Path(str(folder)) if folder else output_folder()
    return next(n for n in numbered(name) if not os.path.exists(place / f"{n}.safetensors"))


def starters() -> Choices:
    """Starter templates, then lists of prompts that a host holds."""
    return STARTERS + [(name, HOSTS + name) for name in surroundings.current.prompt_lists()]


def starter(name: object) -> str:
    """The text of a starter template, offered or a demo checkpoint's own, or of a host's list."""
    if isinstance(name, str) and name.startswith(HOSTS):
        return surroundings.current.read_prompts(name.removeprefix(HOSTS))
    if name not in {path.stem for path in TEMPLATES.glob("*.txt")}:
        raise PromptError(f"There are no starter prompts named {name}.")
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
