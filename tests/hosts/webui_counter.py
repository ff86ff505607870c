"""Runs inside A1111 as a script of a neighbouring extension: what each evaluation really was.

A line of JSON for each forward pass of the network: which pass of which kind of generation, its
noise level, the guidance that its step is combined with, rows of the batch, and the strength at
which a LoRA stands in the network's weights or beside its layers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from modules import script_callbacks, sd_samplers_cfg_denoiser, shared  # pyright: ignore

PLACE = Path(os.environ["DPDMD_HOME"]).parent / "evaluations.jsonl"
step: dict[str, Any] = {}
denoise = sd_samplers_cfg_denoiser.CFGDenoiser.forward


def noted_denoise(self: Any, x: Any, sigma: Any, **rest: Any) -> Any:
    kind = "img2img" if hasattr(self.p, "init_images") else "txt2img"
    kind = "hires" if getattr(self.p, "is_hr_pass", False) else kind
    kind = getattr(self.p, "dpdmd_test_pass", kind)
    step.update(kind=kind, level=float(sigma.flatten()[0]), guidance=float(rest["cond_scale"]))
    return denoise(self, x, sigma, **rest)


def strength(network: Any) -> float:
    """Of the LoRAs in the first layer that any of them changes."""
    active = sys.modules["networks"].loaded_networks
    known = {key for net in active for key in net.modules}
    for layer in network.modules():
        if getattr(layer, "network_layer_name", "") in known:
            if shared.opts.lora_functional:
                key = layer.network_layer_name
                return sum(net.unet_multiplier for net in active if key in net.modules)
            return sum(unet for _, _, unet, _ in layer.network_current_names)
    return 0.0


def note(network: Any, inputs: Any, _: Any) -> None:
    line = {**step, "rows": len(inputs[0]), "lora": float(strength(network))}
    with PLACE.open("a") as file:
        file.write(json.dumps(line) + "\n")


sd_samplers_cfg_denoiser.CFGDenoiser.forward = noted_denoise
script_callbacks.on_model_loaded(
    lambda model: model.model.diffusion_model.register_forward_hook(note)
)
