"""The committed example workflows are what the tool makes of today's nodes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/make_workflows.py."""
    before = list(sys.path)
    place = ROOT / "tools" / "make_workflows.py"
    spec = importlib.util.spec_from_file_location("make_workflows", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def test_the_files_are_those_that_the_tool_writes(tool):
    files = {path.stem: path for path in (ROOT / "example_workflows").glob("*.json")}
    assert set(files) == set(tool.WORKFLOWS)
    for name, make in tool.WORKFLOWS.items():
        assert files[name].read_text(encoding="utf-8") == make(), f"{name}: run the tool"
        assert files[name].with_suffix(".jpg").is_file()


def test_every_socket_of_ours_that_must_be_connected_is(tool):
    for make in tool.WORKFLOWS.values():
        for node in json.loads(make())["nodes"]:
            kind = tool.NODE_CLASS_MAPPINGS.get(node["type"])
            required = kind.INPUT_TYPES()["required"] if kind else {}
            links = {slot["name"]: slot["link"] for slot in node["inputs"]}
            assert not [name for name in links if name in required and links[name] is None]
