"""In a real ComfyUI: Z-Image's transformer alone, from DP-DMD Distill to the sampler's picture.

The smallest Z-Image that the host loads has 909 million parameters: 12 GB of memory are needed. Its
text encoder is as wide as the published one and no host loads that of three layers, so that the
sampler is told random text; the trainer encodes its own prompts with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_files import zimage_files
from comfyui_graphs import node
from comfyui_server import ComfyUI, Graph, needs_comfyui
from dpdmd_studio.core.lora.file import read_lora
from safetensors.torch import load_file

pytestmark = needs_comfyui
FOLDERS = {"denoiser": "diffusion_models", "encoder": "text_encoders", "vae": "vae"}
QUICK = {"evaluation_prompts": 0, "preview_every": 0, "fake_updates": 1, "warmup_steps": 0,
         "fake_rank": 4, "anchor_step": 1}  # fmt: skip
SECONDS = 1200.0


@pytest.fixture(scope="module")
def files(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The three files where a host keeps them; they and what the host holds of them go again."""
    _, made = zimage_files(tmp_path_factory.mktemp("zimage"))
    found = {}
    for part, folder in FOLDERS.items():
        place = comfyui.base / "models" / folder
        place.mkdir(exist_ok=True)
        found[part] = made[part].rename(place / made[part].name)
    yield found
    comfyui.request("/free", {"unload_models": True, "free_memory": True})
    for path in found.values():
        path.unlink()


def distil(**changed: object) -> dict:
    inputs = {
        "checkpoint": "diffusion_models/z_image.safetensors", "prompts": "a cat\na red fox",
        "output_name": "z", "preset": "none", "mode": "wait", "steps": 2, "num_steps": 4,
        "resolution": "64", "batch_size": 1, "student_rank": 4, "student_lr": 1e-2,
        "teacher_guidance": 0.0, "diversity_weight": 0.05, "seed": 0, "qwen": "none",
        "settings_json": json.dumps(QUICK),
    }  # fmt: skip
    return node("DPDMDDistill", **(inputs | changed))


def pictures(model: str, to: Path, **nodes: dict) -> Graph:
    """A graph that saves what a sampler makes of the MODEL at that node."""
    return {
        "plain": node("UNETLoader", unet_name="z_image.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="ae.safetensors"),
        "yes": node("RandomConditioning", seed=1, width=2560, pooled=0),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sample": node("KSampler", model=[model, 0], positive=["yes", 0], negative=["yes", 0],
                       seed=5, steps=4, cfg=1.0, denoise=1.0, latent_image=["latent", 0],
                       sampler_name="euler", scheduler="simple"),
        "image": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveTensors", image=["image", 0], path=str(to)),
        **nodes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(comfyui: ComfyUI, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """(what Distill said, the picture that DP-DMD KSampler made with its outputs)."""
    path = tmp_path_factory.mktemp("pictures") / "ours.safetensors"
    graph = pictures(
        "with", path, distil=distil(),
        **{"with": node("LoraModelLoader", model=["plain", 0], lora=["distil", 0],
                        strength_model=1.0, bypass=False)},
        sample=node("DPDMDKSampler", model=["with", 0], recipe=["distil", 3], positive=["yes", 0],
                    latent_image=["latent", 0], seed=5, steps=0, denoise=1.0),
    )  # fmt: skip
    outputs = comfyui.run(graph, SECONDS)
    return outputs["distil"]["text"][0], load_file(path)["image"]


def test_the_lists_have_the_transformer_and_what_it_needs(comfyui, files):
    inputs = comfyui.get("/object_info/DPDMDDistill")["DPDMDDistill"]["input"]
    assert "diffusion_models/z_image.safetensors" in inputs["required"]["checkpoint"][0]
    assert "qwen_3_4b.safetensors" in inputs["optional"]["qwen"][0]
    assert "ae.safetensors" in inputs["optional"]["vae"][0]


def test_the_estimate_is_there_before_it_runs(comfyui, files):
    wanted = {"checkpoint": "diffusion_models/z_image.safetensors", "steps": 2, "preset": "none"}
    said = comfyui.post("/dpdmd/v1/node-estimate", wanted)["text"]
    assert "Memory:" in said and "qwen_3_4b.safetensors" in said and "ae.safetensors" in said


def test_the_node_says_which_files_it_took(comfyui, made):
    said, _ = made
    assert "qwen_3_4b.safetensors" in said and "ae.safetensors" in said
    assert "z.safetensors is in the loras folder" in said
    lora = read_lora(comfyui.base / "models" / "loras" / "z.safetensors")
    assert lora.recipe is not None and lora.recipe.family == "zimage"


def test_the_picture_is_the_lora_s_and_core_makes_the_same(comfyui, made, tmp_path):
    _, ours = made
    assert ours.shape == (1, 64, 64, 3) and ours.std() > 0.05
    lora = node(
        "LoraLoaderModelOnly", model=["plain", 0], lora_name="z.safetensors", strength_model=1.0
    )
    found = []
    for model in ("lora", "plain"):
        path = tmp_path / f"{model}.safetensors"
        comfyui.run(pictures(model, path, lora=lora), SECONDS)
        found.append(load_file(path)["image"])
    core, teacher = found
    assert float((ours - core).abs().max()) < 1 / 255
    assert float((ours - teacher).abs().max()) > 5 / 255


def test_without_its_text_encoder_the_node_says_what_to_put_where(comfyui, files):
    away = files["encoder"].rename(files["encoder"].with_suffix(".away"))
    try:
        message = comfyui.failure({"distil": distil(output_name="z-without")})
    finally:
        away.rename(files["encoder"])
    assert "fill in the qwen input" in message
    assert "models/text_encoders, qwen_3_4b.safetensors is found" in message
