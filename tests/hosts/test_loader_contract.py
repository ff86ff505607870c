"""The checkout loads in every host, whatever its folder is called and whoever else is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loaders import HOSTS, ORDERS

ROOT = Path(__file__).resolve().parents[2]
LOADERS = Path(__file__).with_name("loaders.py")
FOLDER_NAMES = ("a-b", "a.b", "a b", "1ab")
CODE = ("__init__.py", "mount.py", "core", "app", "trainer", "cli")
CODE += ("comfy_nodes", "webui_extension", "scripts")


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our code under four awkward names, and a rival that owns `trainer`."""
    folder = tmp_path_factory.mktemp("extensions")
    for name in FOLDER_NAMES:
        for part in CODE:
            source, copy = ROOT / part, folder / name / part
            if source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)
            else:
                only_code = shutil.ignore_patterns("__pycache__", "assets", "*.safetensors")
                shutil.copytree(source, copy, ignore=only_code)
    rival = folder / "rival" / "trainer"
    rival.mkdir(parents=True)
    (rival / "__init__.py").write_text("OWNER = 'rival'\n", encoding="utf-8")
    return folder


def visited(extensions: Path, visits: str, *checkouts: Path) -> dict[str, dict[str, dict]]:
    """What the checkouts look like in the hosts, by host and order, then by folder name."""
    process = subprocess.run(
        [sys.executable, str(LOADERS), visits, str(extensions / "rival"), *map(str, checkouts)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def reports(extensions):
    return visited(extensions, "all", *(extensions / name for name in FOLDER_NAMES))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("host", HOSTS)
def test_the_checkout_loads_beside_a_rival_trainer(reports, host, order):
    found = reports[f"{host} {order}"]
    assert list(found) == list(FOLDER_NAMES)
    for folder_name, report in found.items():
        assert "error" not in report, f"{folder_name}:\n{report['error']}"
        assert report["rival"] == "rival", folder_name
        assert report["rival_later"] == "rival", folder_name
        assert report["strangers"] == [], folder_name


def test_comfyui_finds_both_node_tables(reports):
    for report in reports["comfyui after"].values():
        assert report["tables"] == ["dict", "dict"]


def test_a_broken_node_module_is_shown_not_hidden(extensions, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(extensions / "a-b", broken)
    nodes = broken / "comfy_nodes" / "__init__.py"
    nodes.write_text("import types\ntypes.renamed_by_the_host\n", encoding="utf-8")
    error = visited(extensions, "comfyui after", broken)["comfyui after"]["broken"]["error"]
    assert "ImportError" in error
    assert "renamed_by_the_host" in error
