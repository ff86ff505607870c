"""API prompts for a real ComfyUI, as tests put them together."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_files import CONTEXT
from comfyui_server import ComfyUI, Graph
from safetensors.torch import load_file


def graph_with(name: str, files: dict[str, tuple[str, str]], **nodes: dict) -> Graph:
    """A graph with a model ("lora", 0), its recipe ("lora", 1), conditioning and a latent."""
    checkpoint, lora = files[name]
    width, pooled = CONTEXT[name]
    channels = {"sd3": "EmptySD3LatentImage"}.get(name, "EmptyLatentImage")
    common = {"width": width, "pooled": pooled}
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "lora": node("DPDMDLoadLora", model=["model", 0], lora_name=lora, strength=1.0),
        "core": node("LoraLoaderModelOnly", model=["model", 0], lora_name=lora, strength_model=1.0),
        "yes": node("RandomConditioning", seed=1, **common),
        "no": node("RandomConditioning", seed=2, **common),
        "latent": node(channels, width=64, height=64, batch_size=2),
        **nodes,
    }


def node(kind: str, **inputs: object) -> dict:
    """One node of an API prompt."""
    return {"class_type": kind, "inputs": inputs}


def ksampler(sampler: str, scheduler: str, model: str = "core", **changed: object) -> dict:
    """Core's KSampler at 4 steps and cfg 1."""
    inputs = {
        "model": [model, 0], "positive": ["yes", 0], "negative": ["no", 0], "seed": 5, "steps": 4,
        "latent_image": ["latent", 0], "cfg": 1.0, "denoise": 1.0,
    }  # fmt: skip
    inputs |= {"sampler_name": sampler, "scheduler": scheduler, **changed}
    return node("KSampler", **inputs)


def ours(**changed: object) -> dict:
    """The one-node way."""
    inputs = {
        "model": ["lora", 0], "positive": ["yes", 0], "latent_image": ["latent", 0], "seed": 5,
        "steps": 0, "denoise": 1.0,
    }  # fmt: skip
    return node("DPDMDKSampler", **(inputs | changed))


def drawn(comfyui: ComfyUI, graph: Graph, *names: str, folder: Path) -> dict[str, torch.Tensor]:
    """The latents at some nodes of a graph."""
    for name in names:
        path = str(folder / f"{name}.safetensors")
        graph = {**graph, f"save {name}": node("SaveTensors", path=path, latent=[name, 0])}
    comfyui.run(graph)
    return {name: load_file(folder / f"{name}.safetensors")["latent"] for name in names}
