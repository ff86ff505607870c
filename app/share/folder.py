"""The folder and the zip of a package: built beside their place, then moved there.

A package that exists is replaced only if asked; files that no package wrote are never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...core.errors import OutputError
from ...core.files import atomic_write
from ...core.files.hashes import file_sha256
from ..library.path_checks import MAX_NAME_BYTES
from ..runs.lock import owned
from .cards import civitai_info, upload_notes, webui_card
from .describe import description, description_page, model_card
from .facts import PackageFacts
from .workflow import workflow

MANIFEST = "package.json"
LOCK = "lock.json"
MARKS = (LOCK, f".{LOCK}.guard", f".{LOCK}.held")  # in a folder that is being built
IMAGES = "pictures"
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20


def package_files(name: str, count: int) -> list[str]:
    """Every file of a package, relative to its folder."""
    texts = ("description.md", "description.html", "README.md", "CIVITAI.txt", "workflow.json")
    own = (".safetensors", ".json", ".civitai.info", ".preview.png")
    images = [image_file(number) for number in range(1, count + 1)]
    return [*(name + end for end in own), *images, "cover.png", *texts, MANIFEST]


def image_file(number: int) -> str:
    """Where image `number` (from 1) lies in a package."""
    return f"{IMAGES}/{number:02d}.png"


def zip_of(output: Path) -> Path:
    """The zip that goes with a package's folder."""
    return output.with_name(output.name + ".zip")


def check_place(output: Path, files: Sequence[str], overwrite: bool) -> None:
    """Raise OutputError unless the package may go to the folder `output` and the zip beside it."""
    archive = zip_of(output)
    if len(os.fsencode(archive.name)) > MAX_NAME_BYTES - len(".part"):
        raise OutputError(
            f"The folder's name {output.name[:40]}... is too long: its zip is named after it, and "
            "drives take names of 255 bytes. Name it shorter with --output."
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; name a folder for the package with --output.")
    for path in (output, archive):
        taken = any(path.iterdir()) if path.is_dir() else path.exists()
        if taken and not overwrite:
            raise OutputError(
                f"{path} exists already and is not empty. Add --overwrite to replace an earlier "
                "package, or name another folder with --output."
            )
    earlier = _manifest(output)
    foreign = [name for name in files if (output / name).exists() and name not in earlier]
    if foreign:
        raise OutputError(
            f"{output / foreign[0]} is not part of an earlier package, so it is not replaced. "
            "Name another folder with --output."
        )
    if archive.exists() and not _is_package(archive):
        raise OutputError(
            f"{archive} is not the zip of an earlier package, so it is not replaced. Name another "
            "folder with --output."
        )


@contextlib.contextmanager
def building(output: Path, name: str, files: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A folder to fill; if the block succeeds it becomes `output`, and its zip lies beside it.

    Raises:
        OutputError: the place is taken or cannot be written.
        RunError: another process builds the same package at this moment.
    """
    check_place(output, files, overwrite)
    part = output.with_name(output.name + ".part")
    with atomic_write.explained(part):
        if (
            part.exists()
            and not any((part / mark).exists() for mark in MARKS)
            and any(part.iterdir())
        ):
            raise OutputError(
                f"{part} is in the way and was not made by this program. Move it away, or name "
                "another folder with --output."
            )
        part.mkdir(parents=True, exist_ok=True)
    ours = False
    try:
        with owned(part / LOCK, about=f"the package {name}"):
            ours = True
            _clear(part)
            yield part
            _write_manifest(part)
        for mark in MARKS:
            (part / mark).unlink(missing_ok=True)
        with atomic_write.atomic_path(zip_of(output)) as temporary:
            _write_zip(part, temporary, name)
            with atomic_write.explained(output):
                _place(part, output)
    finally:
        if ours:
            shutil.rmtree(part, ignore_errors=True)


def _clear(part: Path) -> None:
    """Remove what an earlier, broken attempt left."""
    for entry in part.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in MARKS:
            entry.unlink(missing_ok=True)


def _files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in MARKS)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _write_manifest(part: Path) -> None:
    files = {name: file_sha256(part / name) for name in _files_in(part)}
    content = {"version": MANIFEST_VERSION, "program": "DP-DMD Studio", "files": files}
    atomic_write.write_text(part / MANIFEST, json.dumps(content, indent=1) + "\n")


def _write_zip(part: Path, target: Path, name: str) -> None:
    packed = (".png", ".safetensors")
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        for file in _files_in(part):
            plain = file.endswith(packed)  # these do not shrink
            method = zipfile.ZIP_STORED if plain else zipfile.ZIP_DEFLATED
            archive.write(part / file, f"{name}/{file}", compress_type=method)


def _place(part: Path, output: Path) -> None:
    """Move the finished folder to its place, or its files into a folder that has others."""
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if not output.exists():
        return atomic_write.replace(part, output)
    earlier, files = _manifest(output), _files_in(part)
    for file in files:
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        atomic_write.replace(part / file, output / file)
    for file, sha256 in earlier.items():
        old = output / file
        if file not in files and _is_own(output, old) and file_sha256(old) == sha256:
            old.unlink()  # of an earlier package, and nobody has changed it since


def _is_own(output: Path, path: Path) -> bool:
    inside = path.resolve().is_relative_to(output.resolve())
    return inside and path.is_file() and not path.is_symlink()


def _manifest(output: Path) -> dict[str, str]:
    """The files of an earlier package by SHA256; empty where there is none that can be trusted."""
    path = output / MANIFEST
    try:
        if path.is_symlink() or path.stat().st_size > MAX_MANIFEST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != MANIFEST_VERSION:
            return {}
        found = {name: sha for name, sha in content["files"].items() if _is_relative(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return found | {MANIFEST: ""} if found else {}


def _is_relative(name: str) -> bool:
    parts = PurePosixPath(name).parts
    bad = any(character in name for character in "\\:\0")
    return not bad and bool(parts) and ".." not in parts and not name.startswith("/")


def _is_package(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as content:
            return any(name.endswith(f"/{MANIFEST}") for name in content.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def package_texts(facts: PackageFacts, to_html: Callable[[str], str]) -> dict[str, str]:
    """Content of every text file of the package.

    Args:
        to_html: makes HTML of Markdown; the worker has a library for it.
    """
    markdown = description(facts)
    page = description_page(facts.title, to_html(markdown))
    return {
        "description.md": markdown,
        "description.html": page,
        "README.md": model_card(facts),
        "CIVITAI.txt": upload_notes(facts),
        "workflow.json": workflow(facts),
        f"{facts.name}.json": webui_card(facts),
        f"{facts.name}.civitai.info": civitai_info(facts, page),
    }
