"""Runs inside a web UI as a script of a neighbouring extension: what each evaluation really was.

A line of JSON for each forward pass of the network: which pass of which kind of generation, its
noise level, the guidance that its step is combined with, rows of the batch, and the strength at
which a LoRA stands in the network's weights or, in A1111, beside its layers. The Forge family
merges LoRAs into the weights: there the strength is how much of the LoRA's own change of one layer
is in that layer's weight.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_samplers_cfg_denoiser, shared  # pyright: ignore
from safetensors import safe_open

BASE = Path(os.environ["DPDMD_HOME"]).parent
PLACE = BASE / "evaluations.jsonl"
LAYER = "transformer_blocks.0.attn1.to_q"
OF_FILE = f"model.diffusion_model.input_blocks.1.1.{LAYER}.weight"
OF_LORA = "lora_unet_down_blocks_0_attentions_0_" + LAYER.replace(".", "_")
GUIDED = (
    ("backend.sampling.sampling_function", "sampling_function_inner"),  # Forge and Forge Neo
    ("modules.sd_samplers_cfg_denoiser", "sampling_function"),  # reForge
)
"""Functions (model, x, level, negative, positive, guidance, ...) that combine two predictions."""

step: dict[str, Any] = {}
seen: list[Any] = []
denoise = sd_samplers_cfg_denoiser.CFGDenoiser.forward


def noted_denoise(self: Any, x: Any, sigma: Any, **rest: Any) -> Any:
    kind = "img2img" if hasattr(self.p, "init_images") else "txt2img"
    kind = "hires" if getattr(self.p, "is_hr_pass", False) else kind
    kind = getattr(self.p, "dpdmd_test_pass", kind)
    step.update(kind=kind, level=float(sigma.flatten()[0]), guidance=float(rest["cond_scale"]))
    count_in(network_of(shared.sd_model))
    return denoise(self, x, sigma, **rest)


def network_of(model: Any) -> Any:
    """The module that is evaluated."""
    if hasattr(model, "forge_objects"):
        return model.forge_objects.unet.model.diffusion_model
    return model.model.diffusion_model


def count_in(network: Any) -> None:
    """Note the forward passes of a network from now on, once."""
    if not any(known is network for known in seen):
        seen.append(network)
        network.register_forward_hook(note)


def noted_guidance(combine: Callable[..., Any]) -> Callable[..., Any]:
    """`combine`, which notes the guidance that the host gave it in the end."""

    def wrapped(*given: Any, **named: Any) -> Any:
        step["guidance"] = float(named["cond_scale"] if "cond_scale" in named else given[5])
        return combine(*given, **named)

    return wrapped


def beside(network: Any) -> float:
    """A1111: the strength of the LoRAs in the first layer that any of them changes."""
    active = sys.modules["networks"].loaded_networks
    known = {key for net in active for key in net.modules}
    for layer in network.modules():
        if getattr(layer, "network_layer_name", "") in known:
            if shared.opts.lora_functional:
                key = layer.network_layer_name
                return sum(net.unet_multiplier for net in active if key in net.modules)
            return sum(unet for _, _, unet, _ in layer.network_current_names)
    return 0.0


def merged(network: Any) -> float:
    """The Forge family: the part of the test's LoRA in the weight of one layer."""
    (checkpoint,) = (BASE / "models" / "Stable-diffusion").glob("*.safetensors")
    with safe_open(str(checkpoint), "pt") as file:
        plain = file.get_tensor(OF_FILE).double()
    with safe_open(str(BASE / "models" / "Lora" / "few.safetensors"), "pt") as file:
        down, up = (file.get_tensor(f"{OF_LORA}.lora_{name}.weight") for name in ("down", "up"))
        alpha = float(file.get_tensor(f"{OF_LORA}.alpha"))
    change = (up.double().flatten(1) @ down.double().flatten(1)) * (alpha / len(down))
    now = network.input_blocks[1][1].get_submodule(LAYER).weight
    found = now.detach().double().cpu().reshape(plain.shape) - plain
    change = change.reshape(plain.shape)
    return round(float((found * change).sum() / (change * change).sum()), 2) + 0.0


def note(network: Any, inputs: Any, _: Any) -> None:
    strength = merged if hasattr(shared.sd_model, "forge_objects") else beside
    line = {**step, "rows": len(inputs[0]), "lora": float(strength(network))}
    with PLACE.open("a") as file:
        file.write(json.dumps(line) + "\n")


sd_samplers_cfg_denoiser.CFGDenoiser.forward = noted_denoise
for place, name in GUIDED:
    try:
        module = importlib.import_module(place)
    except ImportError:
        continue
    if hasattr(module, name):
        setattr(module, name, noted_guidance(getattr(module, name)))
