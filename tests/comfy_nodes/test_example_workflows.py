"""The committed example workflows are what the tool makes of today's nodes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dpdmd_studio.app.prompts.reading import parse_prompts
from dpdmd_studio.comfy_nodes.training.new_run import FEW_PROMPTS

ROOT = Path(__file__).resolve().parents[2]
TITLE, GROUP_TITLE = 30, 40
"""Pixels of the canvas."""


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


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a node, its title included."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def path_of(link: list[Any], workflow: dict[str, Any]) -> list[tuple[float, float]]:
    """Points of a link about as the canvas draws it: curves from output over turns to input."""
    link_id, start, output, end, input_, _ = link
    nodes = {node["id"]: node for node in workflow["nodes"]}
    turns = [turn["pos"] for turn in workflow["extra"]["reroutes"] if link_id in turn["linkIds"]]
    (x, y), width = nodes[start]["pos"], nodes[start]["size"][0]
    ends = nodes[end]["pos"]
    corners = [(x + width, y + 14 + 20 * output), *turns, (ends[0], ends[1] + 14 + 20 * input_)]
    points = []
    for number, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(corners)):
        reach = math.dist((x0, y0), (x1, y1)) / 4
        before = reach if number == 0 else 0
        behind = reach if number == len(turns) else 0
        for t in (step / 40 for step in range(41)):
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            x = a * x0 + b * (x0 + before) + c * (x1 - behind) + d * x1
            points.append((x, (a + b) * y0 + (c + d) * y1))
    return points


def test_no_node_lies_on_another_and_groups_hold_theirs(tool):
    for name, make in tool.WORKFLOWS.items():
        workflow = json.loads(make())
        boxes = {node["id"]: box(node) for node in workflow["nodes"]}
        pairs = itertools.combinations(boxes.items(), 2)
        assert not [(name, i, j) for (i, one), (j, two) in pairs if overlap(one, two)]
        groups = []
        for group in workflow["groups"]:
            x, y, width, height = group["bounding"]
            groups.append((x, y, x + width, y + height))
        assert not [pair for pair in itertools.combinations(groups, 2) if overlap(*pair)]
        for node_id, (left, top, right, bottom) in boxes.items():
            around = [g for g in groups if overlap(g, boxes[node_id])]
            assert len(around) == 1, (name, node_id)
            x0, y0, x1, y1 = around[0]
            assert x0 < left and y0 + GROUP_TITLE <= top and right < x1 and bottom < y1


def test_no_link_passes_under_a_node(tool):
    for name, make in tool.WORKFLOWS.items():
        workflow = json.loads(make())
        for link in workflow["links"]:
            for node in workflow["nodes"]:
                left, top, right, bottom = box(node)
                under = [
                    point
                    for point in path_of(link, workflow)
                    if left + 1 < point[0] < right - 1 and top < point[1] < bottom
                ]
                assert not under, (name, link, node["type"], under[0])


def test_files_that_are_not_ours_are_offered_for_download(tool):
    offered = {
        (model["directory"], model["name"], model["url"].rpartition("/")[2])
        for make in tool.WORKFLOWS.values()
        for node in json.loads(make())["nodes"]
        for model in node["properties"].get("models", [])
    }
    sdxl, dmd2 = "sd_xl_base_1.0.safetensors", "dmd2_sdxl_4step_lora.safetensors"
    assert offered == {("checkpoints", sdxl, sdxl), ("loras", dmd2, dmd2)}


def test_the_example_that_distils_has_one_checkpoint_and_a_template_of_prompts(tool):
    nodes = json.loads(tool.distil())["nodes"]
    distil = next(node for node in nodes if node["type"] == "DPDMDDistill")
    assert [slot["link"] is not None for slot in distil["inputs"]] == [True]
    assert len(parse_prompts(distil["widgets_values"][1], "the example").prompts) >= FEW_PROMPTS


def test_every_socket_of_ours_that_must_be_connected_is(tool):
    for make in tool.WORKFLOWS.values():
        for node in json.loads(make())["nodes"]:
            kind = tool.NODE_CLASS_MAPPINGS.get(node["type"])
            required = kind.INPUT_TYPES()["required"] if kind else {}
            links = {slot["name"]: slot["link"] for slot in node["inputs"]}
            assert not [name for name in links if name in required and links[name] is None]
