"""Tries the pinned packages together: `python tools/smoke_environment.py` inside an environment.

Imports what the trainer imports, builds a tiny UNet and a tiny SD3 transformer with two adapters,
and checks forward, backward, switching and saving, offline. To be run on a real interpreter of each
supported version whenever the pins in `app/environment/requirements-*.txt` change.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
LIBRARIES = "torch numpy PIL safetensors tokenizers transformers diffusers peft accelerate filelock"


def networks():
    """(network, its inputs) for a tiny UNet and a tiny SD3 transformer."""
    import torch
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    text, timestep = torch.randn(2, 5, 32), torch.tensor([500, 20])
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    yield unet, {"sample": torch.randn(2, 4, 8, 8), "timestep": timestep}, text
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    inputs = {"hidden_states": torch.randn(2, 16, 8, 8), "pooled_projections": torch.randn(2, 32)}
    yield transformer, inputs | {"timestep": timestep}, text


def try_adapters(network, inputs, text) -> None:
    """Two adapters on one network: off is exact, each learns alone, saving works."""
    import torch
    from peft import LoraConfig

    def run():
        return network(**inputs, encoder_hidden_states=text, return_dict=False)[0]

    network.requires_grad_(False)
    reference = run()
    for name in ("student", "fake"):
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        network.add_adapter(config, adapter_name=name)
    for name, other in (("student", "fake"), ("fake", "student")):
        network.set_adapter(name)
        run().square().mean().backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        assert gradients and all(f".{name}." in n for n in gradients), other
        assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
        network.zero_grad(set_to_none=True)
    network.disable_adapters()
    assert torch.equal(run(), reference)
    with tempfile.TemporaryDirectory() as folder:
        network.save_lora_adapter(folder, adapter_name="student")
        assert os.listdir(folder)


def main() -> None:
    """Print the versions, then try the networks."""
    for name in LIBRARIES.split():
        print(f"{name} {getattr(importlib.import_module(name), '__version__', '')}", end="  ")
    print(f"on Python {platform.python_version()}")
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    for network, inputs, text in networks():
        try_adapters(network, inputs, text)
        print(f"{type(network).__name__}: ok")


if __name__ == "__main__":
    sys.exit(main())
