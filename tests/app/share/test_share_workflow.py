"""The ComfyUI workflow of a package: whole links, and the settings of the recipe."""

from __future__ import annotations

import dataclasses
import json

import pytest
from dpdmd_studio.app.share.workflow import workflow
from share_packages import anima_facts, facts, recipe

# Widgets of ComfyUI's nodes in their order, from its nodes.py; the seed has a second one.
WIDGETS = {
    "CheckpointLoaderSimple": ["ckpt_name"],
    "TripleCLIPLoader": ["clip_name1", "clip_name2", "clip_name3"],
    "DualCLIPLoader": ["clip_name1", "clip_name2", "type"],
    "CLIPLoader": ["clip_name", "type"],
    "UNETLoader": ["unet_name", "weight_dtype"],
    "VAELoader": ["vae_name"],
    "LoraLoader": ["lora_name", "strength_model", "strength_clip"],
    "LoraLoaderModelOnly": ["lora_name", "strength_model"],
    "ModelSamplingSD3": ["shift"],
    "ModelSamplingAuraFlow": ["shift"],
    "ModelSamplingDiscrete": ["sampling", "zsnr"],
    "CLIPSetLastLayer": ["stop_at_clip_layer"],
    "CLIPTextEncode": ["text"],
    "EmptyLatentImage": ["width", "height", "batch_size"],
    "EmptySD3LatentImage": ["width", "height", "batch_size"],
    "KSampler": ["seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    "VAEDecode": [],
    "SaveImage": ["filename_prefix"],
}


def as_prompt(text: str) -> dict[str, dict]:
    """A canvas workflow as ComfyUI's server takes it; checks every link at both of its ends."""
    graph = json.loads(text)
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    assert (graph["last_node_id"], graph["last_link_id"]) == (max(nodes), max(links))
    for number, start, slot, end, place, kind in graph["links"]:
        assert number in nodes[start]["outputs"][slot]["links"]
        assert nodes[start]["outputs"][slot]["type"] == kind
        assert nodes[end]["inputs"][place]["type"] == kind
        assert nodes[end]["inputs"][place]["link"] == number
    prompt = {}
    for number, node in nodes.items():
        if node["type"] == "Note":
            continue
        values = zip(WIDGETS[node["type"]], node["widgets_values"], strict=True)
        inputs = {name: value for name, value in values if name}
        for slot in node["inputs"]:
            inputs[slot["name"]] = [str(links[slot["link"]][1]), links[slot["link"]][2]]
        prompt[str(number)] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def chain(prompt: dict, node: str, name: str) -> list[str]:
    """Node types met on the way back from an input."""
    found = []
    while name in prompt[node]["inputs"]:
        node = prompt[node]["inputs"][name][0]
        found.append(prompt[node]["class_type"])
    return found


def only(prompt: dict, kind: str) -> tuple[str, dict]:
    ((number, node),) = [item for item in prompt.items() if item[1]["class_type"] == kind]
    return number, node["inputs"]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_the_workflow_samples_as_the_recipe_says(family):
    prompt = as_prompt(workflow(facts(family)))
    number, sampler = only(prompt, "KSampler")
    stated = [sampler[k] for k in ("steps", "cfg", "sampler_name", "scheduler", "denoise", "seed")]
    assert stated == [4, 1.0, "euler", "simple", 1.0, 7]
    expected = ["LoraLoaderModelOnly", "CheckpointLoaderSimple"]
    assert chain(prompt, number, "model") == ["ModelSamplingSD3"] * (family == "sd3") + expected
    assert only(prompt, "LoraLoaderModelOnly")[1]["lora_name"] == "few.safetensors"
    assert only(prompt, "LoraLoaderModelOnly")[1]["strength_model"] == 1.0
    assert only(prompt, "CheckpointLoaderSimple")[1] == {"ckpt_name": "base.safetensors"}
    empty = "EmptySD3LatentImage" if family == "sd3" else "EmptyLatentImage"
    size = 512 if family == "sd1" else 1024
    assert only(prompt, empty)[1] == {"width": size, "height": size, "batch_size": 1}
    texts = [prompt[sampler[name][0]]["inputs"]["text"] for name in ("positive", "negative")]
    assert texts == ["a \\{red\\} cat", ""]
    skips = [n["inputs"] for n in prompt.values() if n["class_type"] == "CLIPSetLastLayer"]
    assert [skip["stop_at_clip_layer"] for skip in skips] == ([-2] if family == "sd1" else [])


def test_the_workflow_has_styles_other_files_and_other_schedules():
    base = facts("sdxl")
    files = ("l.safetensors", "g.safetensors")
    checkpoint = dataclasses.replace(base.checkpoint, text_encoders=files, vae="v.safetensors")
    other = recipe("sdxl", prediction="v", zero_terminal_snr=True)
    styled = dataclasses.replace(
        base, checkpoint=checkpoint, recipe=other, with_loras=(("style.safetensors", 0.8),)
    )
    prompt = as_prompt(workflow(styled))
    number, _ = only(prompt, "KSampler")
    assert chain(prompt, number, "model") == [
        *("ModelSamplingDiscrete", "LoraLoaderModelOnly", "LoraLoader", "CheckpointLoaderSimple"),
    ]
    _, scheduled = only(prompt, "ModelSamplingDiscrete")
    assert (scheduled["sampling"], scheduled["zsnr"]) == ("v_prediction", True)
    _, style = only(prompt, "LoraLoader")
    assert [style[k] for k in ("lora_name", "strength_model", "strength_clip")] == [
        *("style.safetensors", 0.8, 0.8),
    ]
    assert only(prompt, "DualCLIPLoader")[1]["type"] == "sdxl"
    number, _ = only(prompt, "VAEDecode")
    assert chain(prompt, number, "vae") == ["VAELoader"]
    three = dataclasses.replace(facts("sd3").checkpoint, text_encoders=(*files, "t5.safetensors"))
    prompt = as_prompt(workflow(facts("sd3", checkpoint=three)))
    assert only(prompt, "TripleCLIPLoader")[1]["clip_name3"] == "t5.safetensors"


def test_the_workflow_of_anima_loads_its_parts_a_file_each():
    prompt = as_prompt(workflow(anima_facts()))
    number, sampler = only(prompt, "KSampler")
    # time counted from 0 to 1: ModelSamplingSD3 would count it in thousands
    assert chain(prompt, number, "model") == [
        *("ModelSamplingAuraFlow", "LoraLoaderModelOnly", "UNETLoader"),
    ]
    assert only(prompt, "ModelSamplingAuraFlow")[1]["shift"] == 3.0
    assert only(prompt, "UNETLoader")[1] == {
        "unet_name": "anima.safetensors", "weight_dtype": "default",
    }  # fmt: skip
    assert chain(prompt, sampler["positive"][0], "clip") == ["CLIPLoader"]
    assert only(prompt, "CLIPLoader")[1]["clip_name"] == "qwen_3_06b_base.safetensors"
    assert only(prompt, "VAELoader")[1]["vae_name"] == "qwen_image_vae.safetensors"
    assert only(prompt, "EmptySD3LatentImage")[1]["batch_size"] == 1
    whole = facts("anima")  # of one file, which ComfyUI takes as a checkpoint
    kinds = {node["class_type"] for node in as_prompt(workflow(whole)).values()}
    assert "CheckpointLoaderSimple" in kinds and not kinds & {"UNETLoader", "CLIPLoader"}
