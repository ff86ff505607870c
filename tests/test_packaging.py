"""The wheel holds the package and its data; the documents name things that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from dpdmd_studio.app.environment import release
from dpdmd_studio.app.environment.readiness import ENGINE_LIBRARIES
from dpdmd_studio.trainer.evaluation.efficientnet import PACKAGE
from packaging.requirements import Requirement
from test_laws import LIBRARIES, MORE_LIBRARIES, STOREYS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "app", "trainer", "cli", "comfy_nodes", "webui_extension")
CODE_FENCE = re.compile(r"```.*?```", re.DOTALL)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"[\w.*<>-]+(/[\w.*<>-]+)*/?")
TOP_LEVEL = (*FOLDERS, "tests", "tools", "docs", "benchmarks", "scripts", ".ci")


def listed_packages() -> list[str]:
    """The package list of pyproject.toml (read by hand: Python 3.10 has no TOML reader)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^packages = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    return re.findall(r'"([\w.]+)"', block[1])


def packages_of_the_tree() -> list[str]:
    inits = [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    dotted = [path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in inits]
    return sorted(["dpdmd_studio", *(f"dpdmd_studio.{name}" for name in dotted)])


def test_every_package_of_the_tree_is_listed():
    assert sorted(listed_packages()) == packages_of_the_tree()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_hosts_are_asked_to_install_nothing():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
    assert "\ndependencies = []\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def worker_ranges() -> dict[str, Requirement]:
    """Name -> what the extra `worker` of pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^worker = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    found = [Requirement(line) for line in re.findall(r'"([^"]+)"', block[1])]
    return {requirement.name: requirement for requirement in found}


@pytest.mark.parametrize("pins", ["requirements-current.txt", "requirements-python310.txt"])
def test_the_worker_extra_admits_every_pin(pins):
    lines = (ROOT / "app" / "environment" / pins).read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pinned}
    for name, wanted in worker_ranges().items():
        assert wanted.specifier.contains(versions[name]), f"{wanted} and {name} {versions[name]}"
        assert {bound.operator for bound in wanted.specifier} == {">=", "<"}


def test_an_interpreter_is_asked_for_the_releases_of_the_worker_extra():
    for name, oldest in ENGINE_LIBRARIES.items():
        (floor,) = (one.version for one in worker_ranges()[name].specifier if one.operator == ">=")
        assert release(floor) == oldest, name


def test_the_worker_extra_names_what_is_imported_or_read():
    imported = {name for libraries in LIBRARIES.values() for name in libraries}
    imported |= MORE_LIBRARIES["app/gui/app.py"]
    imported.add(PACKAGE.replace("_", "-"))  # its weights are read as a file
    called = {"PIL": "pillow", "markdown_it": "markdown-it-py"}
    assert {called.get(name, name) for name in imported} == set(worker_ranges())


def documents() -> list[Path]:
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return [path for path in [*named, *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]


def paths_named_in(text: str) -> set[str]:
    """Paths of this repository in inline code and links; placeholders such as <name> excepted."""
    prose = CODE_FENCE.sub("", text)
    code = {word for word in INLINE_CODE.findall(prose) if PATH.fullmatch(word)}
    ours = {word for word in code if word.split("/")[0] in TOP_LEVEL and "/" in word}
    links = {link for link in LINK.findall(prose) if "://" not in link and "@" not in link}
    return {path for path in ours if "<" not in path} | {f"link:{path}" for path in links}


def exists(path: str, document: Path) -> bool:
    if path.startswith("link:"):
        return (document.parent / path.removeprefix("link:")).exists()
    return any(ROOT.glob(path.rstrip("/")))


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_paths_in_documents_exist(document):
    named = paths_named_in(document.read_text(encoding="utf-8"))
    assert sorted(path for path in named if not exists(path, document)) == []


def rooms_in_the_picture() -> dict[str, list[str]]:
    """Storey -> its rooms in the order in which docs/assets/rooms.svg shows them."""
    picture = ElementTree.parse(ROOT / "docs" / "assets" / "rooms.svg")
    svg = "{http://www.w3.org/2000/svg}"
    return {
        storey.attrib["id"]: [
            text.text or "" for text in storey.iter(f"{svg}text") if text.get("class") == "name"
        ]
        for storey in picture.iter(f"{svg}g")
        if storey.get("id")
    }


def test_the_picture_of_the_rooms_shows_the_order_that_holds():
    assert rooms_in_the_picture() == {storey: list(rooms) for storey, rooms in STOREYS.items()}


def test_a_dead_path_in_a_document_is_caught():
    found = paths_named_in("See `core/no_such_file.py` and [this](docs/nothing.md).")
    assert found == {"core/no_such_file.py", "link:docs/nothing.md"}
    assert not any(exists(path, ROOT / "README.md") for path in found)


def tracked_files() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")


def test_the_wheel_holds_the_package_and_its_data(tmp_path):
    source = tmp_path / "source"
    for name in filter(None, tracked_files()):
        if name.split("/")[0] in (*FOLDERS, "tests", "scripts") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"dpdmd_studio/{name}"
        for name in tracked_files()
        if name.split("/")[0] in FOLDERS or name in ("__init__.py", "__main__.py")
    }
    assert sorted(expected - held) == []
    assert not any(name.startswith(("dpdmd_studio/tests", "tests", "scripts")) for name in held)
