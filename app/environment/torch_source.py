"""Where the worker's torch comes from: kept, borrowed from the running Python, or installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

FINDER = "_dpdmd_borrowed_torch"
# torch, and what torch itself imports
BORROWED_NAMES = (
    "torch",
    "torchgen",
    "functorch",
    "triton",
    "nvidia",
    "cuda",
    "rocm_sdk",
    "_rocm_sdk_core",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
    "filelock",
    "fsspec",
    "typing_extensions",
)


@dataclass(frozen=True)
class FoundTorch:
    """A torch installation: its version and the folder that holds the package."""

    version: str
    folder: Path

    def still_there(self) -> bool:
        """Whether the host has kept exactly this version since."""
        return torch_in(self.folder) == self


def torch_in(folder: Path) -> FoundTorch | None:
    """The torch whose package and metadata lie in `folder`; a borrowed one does not count."""
    if not (folder / "torch" / "__init__.py").is_file():
        return None
    for distribution in importlib.metadata.distributions(name="torch", path=[str(folder)]):
        return FoundTorch(distribution.version, folder)
    return None


def torch_of_this_python() -> FoundTorch | None:
    """The torch that the running interpreter has, found without importing it."""
    try:
        version = importlib.metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    return FoundTorch(version, Path(spec.origin).parent.parent)


def gpu_seen() -> str:
    """The maker of a GPU whose driver is visible here: "NVIDIA", "AMD" or ""."""
    if shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0"):
        return "NVIDIA"
    return "AMD" if os.path.exists("/dev/kfd") else ""


def default_wheel_is_cpu_only(gpu: str) -> bool:
    """Whether the package index's own torch for this platform cannot use the GPU that was seen."""
    return bool(gpu) and not (gpu == "NVIDIA" and sys.platform == "linux")


def borrowed_folders(torch: FoundTorch) -> dict[str, str]:
    """Top-level name -> folder, for torch and what it imports, as this interpreter finds them."""
    folders = {"torch": str(torch.folder)}
    extra = sorted(path.name for path in torch.folder.glob("_rocm_sdk*") if path.is_dir())
    for name in (*BORROWED_NAMES[1:], *extra):
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        place = spec.origin if spec.origin and spec.submodule_search_locations is None else None
        if place is None and spec.submodule_search_locations:
            place = next(iter(spec.submodule_search_locations))
        if place is not None:
            folders[name] = str(Path(place).parent)
    return folders


def lend(torch: FoundTorch, folders: dict[str, str], packages: Path) -> None:
    """Make the host's torch importable from `packages`, and known to package tools there."""
    take_back(packages)
    finder = Path(__file__).with_name("borrowed_torch.py")
    shutil.copyfile(finder, packages / f"{FINDER}.py")
    (packages / f"{FINDER}.json").write_text(json.dumps(folders, indent=1), encoding="utf-8")
    (packages / f"{FINDER}.pth").write_text(f"import {FINDER}\n", encoding="utf-8")
    metadata = packages / f"torch-{torch.version}.dist-info"
    metadata.mkdir()
    (metadata / "INSTALLER").write_text("dpdmd-studio\n", encoding="utf-8")
    about = f"Metadata-Version: 2.1\nName: torch\nVersion: {torch.version}\n"
    (metadata / "METADATA").write_text(about, encoding="utf-8")
    names = ("INSTALLER", "METADATA", "RECORD")
    record = "".join(f"{metadata.name}/{name},,\n" for name in names)
    (metadata / "RECORD").write_text(record, encoding="utf-8")


def take_back(packages: Path) -> None:
    """Undo `lend`; a torch that was really installed is left alone."""
    for suffix in (".py", ".json", ".pth"):
        (packages / f"{FINDER}{suffix}").unlink(missing_ok=True)
    for metadata in packages.glob("torch-*.dist-info"):
        installer = metadata / "INSTALLER"
        if installer.is_file() and installer.read_text(encoding="utf-8").startswith("dpdmd-studio"):
            shutil.rmtree(metadata)
