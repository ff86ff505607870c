"""In a real ComfyUI: our nodes and dropdown entries are there and draw what core nodes draw.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_files import TEACHER, checkpoint_and_lora, teacher_in
from comfyui_graphs import drawn, graph_with, ksampler, node, ours
from comfyui_server import ComfyUI, Graph, command, needs_comfyui
from dpdmd_studio.comfy_nodes import NODE_CLASS_MAPPINGS
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.toys import encoder
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = needs_comfyui
FAMILIES = ("sd3", "sd1", "sdxl")
SAME = 1e-5
"""Largest difference of fp32 latents, in their standard deviations, between two ways to draw."""


@pytest.fixture(scope="module")
def files(comfyui: ComfyUI) -> dict[str, tuple[str, str]]:
    """(checkpoint, LoRA) of each family, in the server's folders."""
    return {name: checkpoint_and_lora(name, comfyui.base / "models") for name in FAMILIES}


def test_nodes_and_dropdown_entries_are_there(comfyui):
    known = comfyui.get("/object_info")
    for name, kind in NODE_CLASS_MAPPINGS.items():
        assert known[name]["display_name"] == kind.DISPLAY_NAME
        assert known[name]["category"].startswith("DP-DMD")
        assert known[name]["description"]
    required = known["KSampler"]["input"]["required"]
    for widget in ("sampler_name", "scheduler"):
        assert required[widget][0].count("dp_dmd") == 1, widget
    assert "IMPORT FAILED" not in comfyui.said_at_boot
    ours = [line for line in comfyui.said_at_boot.splitlines() if "dpdmd" in line.lower()]
    assert not [line for line in ours if re.search("warn|error", line, re.IGNORECASE)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_to_sample_gives_one_picture(comfyui, files, name, tmp_path, capsys):
    guider = node("BasicGuider", model=["lora", 0], conditioning=["yes", 0])
    sampler = node("DPDMDSampler", model=["lora", 0], steps=0, denoise=1.0, recipe=["lora", 1])
    custom = node(
        "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
        sampler=["sampler", 0], sigmas=["sampler", 1], latent_image=["latent", 0],
    )  # fmt: skip
    graph = graph_with(
        name, files, plain=ksampler("euler", "simple"), entry=ksampler("dp_dmd", "dp_dmd"),
        one=ours(), bare=ksampler("euler", "simple", "model"), guider=guider, sampler=sampler,
        custom=custom, noise=node("RandomNoise", noise_seed=5),
    )  # fmt: skip
    found = drawn(comfyui, graph, "plain", "entry", "one", "custom", "bare", folder=tmp_path)
    differences = {
        other: float((found[other] - found["plain"]).abs().max() / found["plain"].std())
        for other in ("entry", "one", "custom")
    }
    effect = float((found["bare"] - found["plain"]).abs().mean() / found["plain"].std())
    with capsys.disabled():
        print(f"\n{name}: {differences}, the LoRA changes {effect:.3f}")  # noqa: T201
    assert effect > 1e-2
    assert max(differences.values()) <= SAME


def test_partial_denoise_stays_on_the_trained_levels(comfyui, files, tmp_path):
    def sigmas(denoise: float) -> dict:
        return node("DPDMDSampler", model=["lora", 0], steps=0, denoise=denoise)

    graph = graph_with("sd1", files, whole=sigmas(1.0), half=sigmas(0.5))
    for name in ("whole", "half"):
        path = str(tmp_path / f"{name}.safetensors")
        graph[f"save {name}"] = node("SaveTensors", path=path, sigmas=[name, 1])
    comfyui.run(graph)
    whole, half = (load_file(tmp_path / f"{n}.safetensors")["sigmas"] for n in ("whole", "half"))
    assert len(whole) == 5
    assert torch.equal(half, whole[2:])


def test_pictures_are_those_of_our_own_command(comfyui, tmp_path, capsys):
    """A LoRA that our command distilled: ComfyUI's picture and `sample`'s, both in 8 bits."""
    lora = comfyui.base / "models" / "loras" / "distilled.safetensors"
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green triangle\n")
    steps = ("--steps", "20", "--evaluate-every", "0", "--preview-every", "0", "--device", "cpu")
    run = ("--run", str(tmp_path / "run"), "--student-lr", "0.002")
    prompts = ("--prompts", str(tmp_path / "prompts.txt"), "--output", str(lora))
    command("distill", str(TEACHER), *prompts, *run, *steps)
    options = ("--lora", str(lora), "--seeds", "7", "--output", str(tmp_path / "ours"))
    more = ("--device", "cpu", "--dtype", "float32")
    command("sample", str(TEACHER), *options, *more, "--prompt", "a red circle")
    expected = np.asarray(Image.open(next((tmp_path / "ours").glob("*.png"))), dtype=np.float32)
    graph: Graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name=teacher_in(comfyui.base / "models")),
        "lora": node("DPDMDLoadLora", model=["model", 0], lora_name=lora.name, strength=1.0),
        "yes": node("FileConditioning", path=encoded("a red circle", tmp_path)),
        "latent": node(
            "EmptySD3LatentImage",
            width=expected.shape[1],
            height=expected.shape[0],
            batch_size=1,
        ),
        "one": ours(seed=7),
        "bare": ours(seed=7, model=["model", 0]),
    }
    for name in ("one", "bare"):
        graph[f"{name} image"] = node("VAEDecode", samples=[name, 0], vae=["model", 2])
        path = str(tmp_path / f"{name}.safetensors")
        graph[f"{name} save"] = node("SaveTensors", path=path, image=[f"{name} image", 0])
    comfyui.run(graph)
    theirs, bare = (
        load_file(tmp_path / f"{name}.safetensors")["image"][0].numpy() * 255
        for name in ("one", "bare")
    )
    assert theirs.shape == expected.shape
    difference, effect = np.abs(theirs - expected), np.abs(bare - expected).mean()
    with capsys.disabled():
        print(  # noqa: T201
            f"\n8-bit levels: at most {difference.max():.2f}, mean {difference.mean():.3f}; "
            f"without the LoRA {effect:.1f}"
        )
    assert effect > 5
    assert difference.max() <= 2.0


def encoded(prompt: str, folder: Path) -> str:
    """A file with the embedded teacher's conditioning of a prompt; no host has its text encoder."""
    encoder.register()
    checkpoint = open_checkpoint(TEACHER, dtype=torch.float32, device="cpu").load()
    found = encode_prompts(checkpoint, [prompt], cache_folder=folder / "cache")[prompt]
    assert found.pooled is not None
    path = folder / "conditioning.safetensors"
    save_file({"context": found.context.float(), "pooled": found.pooled.float()}, path)
    return str(path)
