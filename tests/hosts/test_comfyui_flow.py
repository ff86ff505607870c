"""In a real ComfyUI: a rectified flow of SDXL, which the host takes for eps, draws our picture.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import itertools

import lora_networks
import torch
from comfyui_files import CONTEXT, small_unet
from comfyui_graphs import drawn, graph_with, ksampler, node, ours
from comfyui_server import needs_comfyui
from dpdmd_studio.core.lora.file import (
    NewLora,
    lora_deltas,
    merge_lora,
    parameter_shapes,
    read_lora,
    write_lora,
)
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.trainer.model.conditioning import Conditioning

pytestmark = needs_comfyui
RECIPE = default_recipe("sdxl", "flow", shift=2.5)
SAME = 1e-4
"""Largest difference of fp32 latents, in their standard deviations, between two ways to draw."""


def test_our_loader_and_cores_node_draw_what_we_draw(comfyui, tmp_path, capsys):
    models = comfyui.base / "models"
    call, checkpoint = small_unet("sdxl", models / "checkpoints")
    config = dict(call.network.config)
    pairs = lora_networks.random_pairs(call.network, call.family, config)
    lora = write_lora(
        models / "loras" / "flow.safetensors", NewLora(call.family, config, pairs, RECIPE)
    )
    graph = graph_with(
        "sdxl", {"sdxl": (checkpoint.name, lora.name)},
        one=ours(), entry=ksampler("dp_dmd", "dp_dmd", "lora"),
        euler=ksampler("euler", "simple", "lora"),
        flow=node("ModelSamplingSD3", model=["core", 0], shift=RECIPE.shift),
        plain=ksampler("euler", "simple", "flow"),
    )  # fmt: skip
    ways = ("one", "entry", "euler", "plain")
    found = drawn(comfyui, graph, *ways, folder=tmp_path)
    width, pooled = CONTEXT["sdxl"]
    draw = torch.Generator().manual_seed(1)
    told = torch.randn(1, pooled, generator=draw)
    condition = Conditioning(torch.randn(1, 77, width, generator=draw), told).repeat(2)
    deltas = lora_deltas(read_lora(lora), call.family, config, parameter_shapes(call.network), 1.0)
    merge_lora(call.network, deltas)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for here, there in itertools.pairwise(RECIPE.sigmas):
            x = x + (there - here) * call(x, torch.tensor([1000 * here]), condition)
    expected = x / call.family.vae.scaling_factor
    differences = {way: float((found[way] - expected).abs().max() / expected.std()) for way in ways}
    with capsys.disabled():
        print(f"\nSDXL as a flow: {differences}")  # noqa: T201
    assert max(differences.values()) <= SAME
    # without either, the sampler says what to do
    graph["bare"] = ours(model=["core", 0], recipe=["lora", 1])
    path = str(tmp_path / "bare.safetensors")
    graph["save bare"] = node("SaveTensors", path=path, latent=["bare", 0])
    assert "ModelSamplingSD3 with shift 2.5" in comfyui.failure(graph)
