"""In a real ComfyUI: anchored sampling against chains of core nodes, and the sheet of seeds.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_files import CONTEXT, checkpoint_and_lora
from comfyui_server import ComfyUI, Graph, needs_comfyui
from safetensors.torch import load_file

pytestmark = needs_comfyui
SAME = 1e-4
"""Largest difference of fp32 latents, in their standard deviations."""


@pytest.fixture(scope="module", params=["sd3", "sd1", "anima"])
def graph(request: pytest.FixtureRequest, comfyui: ComfyUI) -> Graph:
    """A checkpoint, the same with a random LoRA, two conditionings, a latent."""
    name = request.param
    checkpoint, lora = checkpoint_and_lora(name, comfyui.base / "models")
    width, pooled = CONTEXT[name]
    latent = "EmptyLatentImage" if name == "sd1" else "EmptySD3LatentImage"
    loader = node("CheckpointLoaderSimple", ckpt_name=checkpoint)
    if name == "anima":
        loader = node("UNETLoader", unet_name=checkpoint, weight_dtype="default")
    return {
        "base": loader,
        "few": node("DPDMDLoadLora", model=["base", 0], lora_name=lora, strength=1.0),
        "yes": node("RandomConditioning", seed=1, width=width, pooled=pooled),
        "no": node("RandomConditioning", seed=2, width=width, pooled=pooled),
        "latent": node(latent, width=64, height=64, batch_size=1),
    }


def node(kind: str, **inputs: object) -> dict:
    """One node of an API prompt."""
    return {"class_type": kind, "inputs": inputs}


def anchored(**changed: object) -> dict:
    """The node, with one plain step unless changed."""
    inputs = {
        "base_model": ["base", 0], "few_step_model": ["few", 0], "positive": ["yes", 0],
        "negative": ["no", 0], "latent_image": ["latent", 0], "seed": 5, "settings": "recipe",
        "anchor": "one plain step", "anchor_steps": 0, "base_cfg": 0.0, "solver": "auto",
        "steps": 0, "denoise": 1.0,
    }  # fmt: skip
    return node("DPDMDAnchoredSampler", **(inputs | changed))


def part(model: str, latent: str, start: int, end: int, **changed: object) -> dict:
    """A part of core's four steps of euler and simple at CFG 1."""
    first = start == 0
    inputs = {
        "model": [model, 0], "add_noise": "enable" if first else "disable", "noise_seed": 5,
        "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": ["yes", 0], "negative": ["no", 0], "latent_image": [latent, 0],
        "start_at_step": start, "end_at_step": end,
        "return_with_leftover_noise": "enable" if first else "disable",
    }  # fmt: skip
    return node("KSamplerAdvanced", **(inputs | changed))


def drawn(comfyui: ComfyUI, graph: Graph, folder: Path, **nodes: dict) -> dict[str, torch.Tensor]:
    """The latents at these nodes."""
    whole = {**graph, **nodes}
    for name in nodes:
        path = str(folder / f"{name}.safetensors")
        whole[f"save {name}"] = node("SaveTensors", path=path, latent=[name, 0])
    comfyui.run(whole)
    return {name: load_file(folder / f"{name}.safetensors")["latent"] for name in nodes}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in standard deviations."""
    return float((one - other).abs().max() / other.std())


def test_one_plain_step_is_two_of_cores_samplers_one_after_the_other(
    comfyui, graph, tmp_path, capsys
):
    found = drawn(
        comfyui, graph, tmp_path, ours=anchored(), start=part("base", "latent", 0, 1),
        theirs=part("few", "start", 1, 4), fresh=anchored(solver="sde"),
        lcm=part("few", "start", 1, 4, sampler_name="lcm"), alone=part("few", "latent", 0, 4),
    )  # fmt: skip
    ode, sde = apart(found["ours"], found["theirs"]), apart(found["fresh"], found["lcm"])
    effect = apart(found["alone"], found["theirs"])
    with capsys.disabled():
        print(f"\node {ode:.1e}, sde {sde:.1e}, the anchor changes {effect:.3f}")  # noqa: T201
    assert effect > 1e-2 and apart(found["fresh"], found["ours"]) > 1e-2
    assert ode <= SAME and sde <= SAME


def test_guided_steps_are_those_of_cores_custom_sampling(comfyui, graph, tmp_path):
    found = drawn(
        comfyui, graph, tmp_path,
        ours=anchored(anchor="guided steps", anchor_steps=1, base_cfg=3.0),
        start=part("base", "latent", 0, 1, cfg=3.0), theirs=part("few", "start", 1, 4),
        more=anchored(anchor="guided steps", base_cfg=3.0),
    )  # fmt: skip
    assert apart(found["ours"], found["theirs"]) <= SAME
    assert apart(found["more"], found["theirs"]) > 1e-2


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [(1.0, 1), (0.9, 1), (0.75, 1), (0.5, 1)]),
        # half of the way there, where noise levels are counted evenly before their shift of 3
        (
            {"anchor": "guided steps", "anchor_steps": 2, "base_cfg": 3.0},
            [(1.0, 2), (0.954545, 2), (0.9, 1), (0.75, 1), (0.5, 1)],
        ),
        # what its recipe says of the teacher: seven steps, guided
        (
            {"anchor": "guided steps"},
            [(3 * u / (1 + 2 * u), 2) for u in (1 - n / 28 for n in range(7))]
            + [(0.9, 1), (0.75, 1), (0.5, 1)],
        ),
    ],
    ids=["plain", "guided", "as trained"],
)
def test_the_network_is_called_at_the_levels_of_both_parts(
    comfyui, graph, tmp_path, changed, expected
):
    if "-sd1." in graph["few"]["inputs"]["lora_name"]:
        pytest.skip("its levels are counted in test_comfy_anchored.py")
    path = tmp_path / "evaluations"
    noted = dict(graph, loaded=graph["base"])
    noted["base"] = node("NoteEvaluations", model=["loaded", 0], path=str(path))
    drawn(comfyui, noted, tmp_path, ours=anchored(**changed))
    found: dict[float, int] = {}
    for line in path.read_text().splitlines():
        level, _, parts = line.split()
        found[float(level)] = found.get(float(level), 0) + int(parts)
    assert list(found) == pytest.approx([level for level, _ in expected], abs=1e-5)
    assert list(found.values()) == [count for _, count in expected]


def test_the_node_says_what_it_does(comfyui, graph):
    path = str(comfyui.base / "note.safetensors")
    saved = {"ours": anchored(), "save": node("SaveTensors", path=path, latent=["ours", 0])}
    text = comfyui.run({**graph, **saved})["ours"]["text"][0]
    assert "Base model: 1 step at CFG 1" in text and "Few-step model: 3 steps at CFG 1" in text
    assert "switched on in" in text and "of the loaded model" in text
    same = {**graph, **saved, "ours": anchored(few_step_model=["base", 0], seed=6)}
    assert "base_model and few_step_model are the same" in comfyui.failure(same)


def test_cancel_in_the_middle_leaves_the_model_as_it_was(comfyui, graph, tmp_path):
    latent = {**graph["latent"]["inputs"], "batch_size": 16}
    large = {"many": {**graph["latent"], "inputs": latent}}
    large["long"] = anchored(steps=120, seed=9, latent_image=["many", 0])  # 119 with the LoRA on
    large["save"] = node("SaveTensors", path=str(tmp_path / "x"), latent=["long", 0])
    before = drawn(comfyui, graph, tmp_path, bare=part("base", "latent", 0, 4))["bare"]
    listener = comfyui.listen()
    try:
        prompt = comfyui.queue({**graph, **large})
        listener.until(
            lambda event: event["type"] == "progress" and event["data"]["value"] >= 5, 120
        )
        begun = time.monotonic()
        comfyui.post("/interrupt", {})
        history = comfyui.wait(prompt)
        assert time.monotonic() - begun < 5
    finally:
        listener.close()
    kinds = [name for name, _ in history["status"]["messages"]]
    assert "execution_interrupted" in kinds and not (tmp_path / "x").exists()
    other = part("base", "latent", 0, 10_000)  # the same, but not from the host's cache
    after = drawn(comfyui, graph, tmp_path, bare=other)["bare"]
    assert torch.equal(before, after)


def test_the_sheet_shows_what_the_samplers_draw(comfyui, graph, tmp_path):
    if graph["few"]["inputs"]["lora_name"] != "random-sd3.safetensors":
        pytest.skip("only the flow teacher has a decoder")
    path = str(tmp_path / "{}.safetensors")
    latent = {"latent_image": ["latent", 0], "positive": ["yes", 0]}
    compare = node(
        "DPDMDCompareSeeds", vae=["base", 2], model_a=["base", 0], model_b=["few", 0],
        first_seed=7, num_seeds=3, base_steps=5, base_cfg=2.0, label_a="teacher", label_b="student",
        negative=["no", 0], **latent,
    )  # fmt: skip
    student = node("DPDMDKSampler", model=["few", 0], seed=9, steps=0, denoise=1.0, **latent)
    nodes = {
        "compare": compare,
        "sheet": node("SaveTensors", path=path.format("sheet"), image=["compare", 0]),
        "student": student,
        "picture": node("VAEDecode", samples=["student", 0], vae=["base", 2]),
        "save": node("SaveTensors", path=path.format("picture"), image=["picture", 0]),
    }
    text = comfyui.run({**graph, **nodes})["compare"]["text"][0]
    assert "A: teacher: diversity 0." in text and "10 evaluations" in text
    assert "B: student: diversity 0." in text and "by its recipe, 4 steps, CFG 1" in text
    sheet = load_file(path.format("sheet"))["image"][0].numpy()
    picture = load_file(path.format("picture"))["image"][0].numpy()
    last = sheet[-134:-6, -134:-6][::2, ::2]  # seed 9 of the student, enlarged twice
    assert np.abs(last - picture).max() <= 1 / 255
    other = sheet[-134:-6, -134 - 134 : -6 - 134][::2, ::2]
    assert np.abs(other - picture).max() > 0.1
