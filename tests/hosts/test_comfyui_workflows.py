"""Every example workflow runs in a real ComfyUI, with small files in place of those it names.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_files import checkpoint_and_lora, teacher_with_clip
from comfyui_server import ROOT, ComfyUI, Graph, needs_comfyui
from dpdmd_studio.app.library import choices

pytestmark = needs_comfyui
EMBEDDED = choices.EMBEDDED.values()
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEED_CONTROLS = ("seed", "noise_seed")


def widget_names(known: dict[str, Any]) -> list[str]:
    """A node's widgets in the canvas's order; "" is the control that changes the seed."""
    found = []
    for group in ("required", "optional"):
        for name, spec in known["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            if (isinstance(spec[0], list) or spec[0] in WIDGETS) and not options.get("forceInput"):
                found.append(name)
                if options.get("control_after_generate", name in SEED_CONTROLS):
                    found.append("")
    return found


def as_prompt(workflow: dict[str, Any], known: dict[str, Any]) -> Graph:
    """What the canvas sends for a workflow; notes stay on the canvas."""
    links = {link[0]: link for link in workflow["links"]}
    prompt: Graph = {}
    for node in workflow["nodes"]:
        if node["type"] == "Note":
            continue
        names = widget_names(known[node["type"]])
        assert len(names) == len(node["widgets_values"]), node["type"]
        named = zip(names, node["widgets_values"], strict=True)
        inputs: dict[str, Any] = {name: value for name, value in named if name}
        for slot in node["inputs"]:
            if slot["link"] is not None:
                inputs[slot["name"]] = [str(links[slot["link"]][1]), links[slot["link"]][2]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def made_small(prompt: Graph, checkpoint: str, lora: str) -> Graph:
    """The same graph with small files, sizes and runs."""
    changes = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        "LoraLoaderModelOnly": {"lora_name": lora},
        "DPDMDLoadLora": {"lora_name": lora},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "DPDMDAnchoredSampler": {"settings": "recipe"},  # the teacher is no SDXL
        "DPDMDDistill": {
            "checkpoint": checkpoint,
            "steps": 4,
            "student_rank": 4,
            "resolution": "64x64",
        },
    }
    for node in prompt.values():
        kept = (
            {"checkpoint": name} if (name := node["inputs"].get("checkpoint")) in EMBEDDED else {}
        )
        node["inputs"] |= changes.get(node["class_type"], {}) | kept
    return prompt


def test_there_are_four():
    assert len(WORKFLOWS) == 4


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflow_draws_a_picture(comfyui: ComfyUI, path: Path):
    models = comfyui.base / "models"
    checkpoint, (_, lora) = teacher_with_clip(models), checkpoint_and_lora("sd3", models)
    workflow = json.loads(path.read_text(encoding="utf-8"))
    known = comfyui.get("/object_info")
    graph = made_small(as_prompt(workflow, known), checkpoint, lora)
    outputs = comfyui.run(graph)
    pictures = [p for output in outputs.values() for p in output.get("images", [])]
    assert pictures
    for picture in pictures:
        folder = {"output": "output", "temp": "temp"}[picture["type"]]
        assert (comfyui.base / folder / picture["subfolder"] / picture["filename"]).is_file()


def test_the_host_lists_them_as_templates(comfyui: ComfyUI):
    listed = comfyui.get("/workflow_templates")
    ours = next(names for pack, names in listed.items() if "dp.dmd" in pack)
    assert sorted(ours) == [path.stem for path in WORKFLOWS]
