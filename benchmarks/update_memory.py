"""Memory of one student update and one fake update at full size, counted without computing them.

    python benchmarks/update_memory.py [--families sd1 sdxl sd3]

The networks have the real layouts; their tensors are fake (shape and dtype, no numbers), so this
runs anywhere. Counted are the bytes of all tensors alive at once, at worst: activations, gradients
and intermediate results, besides weights, adapters and Adam's moments, which are listed on their
own. Attention is PyTorch's fused kernel. An allocator's rounding and a driver's own memory come on
top.
"""

from __future__ import annotations

import argparse
import weakref
from dataclasses import replace

import mounting  # noqa: F401
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.families import family
from dpdmd_studio.trainer.method.distiller import Batch, Distiller
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.model.network import NetworkCall, schedule_of
from dpdmd_studio.trainer.model.roles import AdapterRoles
from full_size_loading import SD35_MEDIUM, SDXL
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONTEXT = {"sd1": (77, 768, 0), "sdxl": (77, 2048, 1280), "sd3": (333, 4096, 2048)}
SMALL = {"lora_layers": "attention", "student_rank": 32, "fake_rank": 32}
RESOLUTIONS = {"sd1": (512, 768), "sdxl": (1024, 768), "sd3": (1024, 768)}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are alive, and the most at one time.

    Views of what was there before (the weights) count nothing.
    """

    def __init__(self, before: torch.nn.Module) -> None:
        super().__init__()
        there = (*before.parameters(), *before.buffers())
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in there}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)
        return out

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def build(name: str, config: DistillConfig, dtype: torch.dtype):
    """Network, roles, and the network's parameters (fake)."""
    torch.set_default_dtype(dtype)
    if name == "sd3":
        network = SD3Transformer2DModel(**SD35_MEDIUM)
    elif name == "sdxl":
        network = UNet2DConditionModel(**SDXL)
    else:
        network = UNet2DConditionModel(cross_attention_dim=768)
    torch.set_default_dtype(torch.float32)
    frozen = sum(t.numel() for t in (*network.parameters(), *network.buffers()))
    modules = family(name).lora_modules(dict(network.config), config.lora_layers)
    roles = AdapterRoles(
        network, modules, student_rank=config.student_rank, fake_rank=config.fake_rank, seed=0
    )
    return network, roles, frozen


def fill(network: torch.nn.Module) -> None:
    """Put fake tensors of the CPU in the place of those without a device."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fresh = torch.empty(value.shape, dtype=value.dtype)
                module._parameters[name] = torch.nn.Parameter(fresh, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def conditioning(name: str, batch: int, dtype: torch.dtype) -> Conditioning:
    """Encoded prompts of the family's size."""
    tokens, width, pooled = CONTEXT[name]
    return Conditioning(
        context=torch.zeros(batch, tokens, width, dtype=dtype),
        pooled=torch.zeros(batch, pooled, dtype=dtype) if pooled else None,
    )


def measure(name: str, config: DistillConfig, side: int, dtype: torch.dtype) -> tuple[float, ...]:
    """Bytes of weights, of adapters with Adam, of all else at its peak; number of parameters."""
    facts = family(name)
    schedule = schedule_of(facts)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        network, roles, frozen = build(name, config, dtype)
    with fake:
        fill(network)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    call = NetworkCall(network, facts, facts.predictions[0], schedule, "cpu")
    distiller = Distiller(call, roles, config, facts.guidance_scale)
    adapters = sum(p.numel() for role in ("student", "fake") for p in roles.parameters(role))
    channels = 16 if name == "sd3" else 4
    with fake, LiveBytes(network) as counted:
        batch = Batch(
            torch.zeros(config.batch_size, channels, side // 8, side // 8),
            conditioning(name, config.batch_size, dtype),
            conditioning(name, config.batch_size, dtype),
        )
        generator = torch.Generator().manual_seed(0)
        _, samples = distiller.student_update(batch, generator)
        student = counted.peak
        for parameter in roles.parameters("student"):
            parameter.grad = None
        distiller.fake_update(samples, generator)
    weights = frozen * torch.tensor([], dtype=dtype).element_size()
    return weights, adapters * 4 * 3, max(student, counted.peak), frozen


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(RESOLUTIONS))
    options = parser.parse_args()
    print("| family | parameters | pixels | batch | layers, rank | checkpointing "
          "| weights GiB | adapters + Adam GiB | rest at peak GiB | all GiB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    # two steps and a short path to the anchor: fewer calls to count, the same peak
    base = DistillConfig(gradient_steps="last", num_steps=2, teacher_steps=4, anchor_step=1)
    for name in options.families:
        large, small = RESOLUTIONS[name]
        for config, side in (
            (base, large),
            (base, small),
            (replace(base, batch_size=2), large),
            (replace(base, **SMALL), large),
            (replace(base, gradient_checkpointing=True), large),
            (replace(base, gradient_checkpointing=True), small),
            (replace(base, gradient_checkpointing=True, **SMALL), large),
        ):
            weights, adapters, rest, count = measure(name, config, side, torch.bfloat16)
            gib = [value / 2**30 for value in (weights, adapters, rest, weights + adapters + rest)]
            print(
                f"| {name} | {count / 1e6:.0f} M | {side}x{side} | {config.batch_size} | "
                f"{config.lora_layers}, {config.student_rank} | "
                f"{'on' if config.gradient_checkpointing else 'off'} | "
                + " | ".join(f"{value:.2f}" for value in gib)
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
