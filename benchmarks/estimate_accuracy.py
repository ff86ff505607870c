"""The counted memory of an update against the live bytes of a real one, on the CPU.

    python benchmarks/estimate_accuracy.py [--size 32] [--skip-large]

The embedded teachers, and a random SD1-layout network of about 100 M parameters; float32, on every
memory fallback. Real updates run first once, so that Adam's moments are there; then the peak is
taken over one student update with its fake updates.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import mounting  # noqa: F401
import torch
from count_memory import Model, count, model_in
from diffusers import UNet2DConditionModel
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.families import Family, family, identify
from dpdmd_studio.core.recipe.few_step import family_schedule
from dpdmd_studio.trainer.distributed import joined
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.loading.parts import find_components
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.memory.packed_base import store_base
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.model.network import NetworkCall, frozen_dtype
from dpdmd_studio.trainer.model.roles import AdapterRoles, RoleNetwork
from dpdmd_studio.trainer.toys import encoder
from dpdmd_studio.trainer.training.batches import Batch, stream_generator
from dpdmd_studio.trainer.training.in_force import SettingsInForce
from dpdmd_studio.trainer.training.loop import Trainer

ASSETS = Path(__file__).resolve().parents[1] / "trainer" / "assets"
LARGE = {
    "sample_size": 64, "block_out_channels": (112, 224, 448, 448), "cross_attention_dim": 768,
    "attention_head_dim": 8, "norm_num_groups": 16,
}  # fmt: skip
Latent = tuple[int, int, int]
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
RANK_16 = {"student_rank": 16, "fake_rank": 16}
MANY: list[dict[str, Any]] = [  # of the embedded teachers
    {"batch_size": 8},
    {"batch_size": 8} | CHECKPOINTED,
    {"batch_size": 8, "micro_batch_size": 2},
    {"batch_size": 4, "gradient_steps": "all"},
    {"batch_size": 8, "lora_layers": "attention"} | RANK_16,
    {"batch_size": 1} | CHECKPOINTED,
    {"batch_size": 1, "optimizer": "adamw8bit"} | CHECKPOINTED,
    {"batch_size": 1, "offload_optimizer": True} | CHECKPOINTED,
    {"batch_size": 1, "base_weights": "int8"} | CHECKPOINTED,
    {"batch_size": 1, "base_weights": "int8", "offload_base": True} | CHECKPOINTED,
    {"batch_size": 1, "base_weights": "nf4"} | CHECKPOINTED,
]
FEW: list[dict[str, Any]] = [  # of the large network
    RANK_16,
    RANK_16 | CHECKPOINTED,
    RANK_16 | CHECKPOINTED | {"optimizer": "adamw8bit"},
    RANK_16 | CHECKPOINTED | {"base_weights": "int8"},
    RANK_16 | CHECKPOINTED | {"base_weights": "int8", "offload_base": True},
]


class Batches:
    """Random inputs of the family's sizes, drawn as a run draws them."""

    def __init__(self, layout: Any, latent: Latent, size: int, tokens: int) -> None:
        self._shape, self._tokens = (size, *latent), tokens
        self._width = layout.get("joint_attention_dim") or layout["cross_attention_dim"]
        self._pooled = layout.get("pooled_projection_dim")

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """The random draws of one use."""
        return stream_generator(0, stream, step, index)

    def _prompts(self, generator: torch.Generator) -> Conditioning:
        size = self._shape[0]
        context = torch.randn(size, self._tokens, self._width, generator=generator)
        pooled = torch.randn(size, self._pooled, generator=generator) if self._pooled else None
        return Conditioning(context, pooled)

    def batch(self, stream: str, step: int, index: int = 0) -> Batch:
        """One update's inputs."""
        generator = self.generator(stream, step, index)
        noise = torch.randn(self._shape, generator=generator)
        return Batch(noise, PromptPair(self._prompts(generator), self._prompts(generator)))


def measured(network: Any, facts: Family, config: DistillConfig, latent: Latent, tokens: int):
    """Peak live bytes of a real update with everything that is resident."""
    layout = dict(network.config)
    store_base(network, config.base_weights, offload=config.offload_base, device="cpu")
    layers = "full" if config.lora_layers == "full" else "attention"
    ranks = {"student_rank": config.student_rank, "fake_rank": config.fake_rank}
    roles = AdapterRoles(network, facts.lora.modules(layout, layers), **ranks, seed=0)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    prediction, schedule = facts.sampling.predictions[0], family_schedule(facts)
    dtype = frozen_dtype(network)
    call = NetworkCall(network, half_of(facts), prediction, schedule, torch.device("cpu"), dtype)
    settings = SettingsInForce(config, Guidance(facts.sampling.guidance_scale))
    batches = Batches(layout, latent, config.batch_size, tokens)
    trainer = Trainer(RoleNetwork(call, roles), batches, settings, joined())  # type: ignore[arg-type]
    trainer.update()
    gc.collect()
    resident = [*network.parameters(), *network.buffers()]
    moments = [value for optimizer in trainer.optimizers.values()
               for state in optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor)]  # fmt: skip
    waiting = moments if config.offload_optimizer else []  # in the CPU's memory, not the device's
    with LiveBytes(resident if waiting else resident + moments, waiting) as counter:
        trainer.update()
    return counter.peak


def embedded(name: str, config: DistillConfig) -> tuple[int, int]:
    """(counted, measured) bytes of an embedded teacher."""
    path = ASSETS / f"emoji-{name}.safetensors"
    detection, facts = identify(path), family(name)
    encoder.register()
    parts, used = find_components(path, {})
    tokens = used["dpdmd"].config["max_position_embeddings"]
    side = detection.resolution // 8
    latent = (detection.latent_channels, side, side)
    real = measured(parts.denoiser.load(torch.float32, "cpu"), facts, config, latent, tokens)
    return count(model_in(path, config, torch.float32), config).peak, real


def large(size: int, config: DistillConfig) -> tuple[int, int]:
    """(counted, measured) bytes of the random network at a latent side of `size`."""
    latent, facts = (4, size, size), family("sd1")
    network = UNet2DConditionModel(**LARGE).eval().requires_grad_(False)
    real = measured(network, facts, config, latent, 77)
    del network
    model = Model(lambda: UNet2DConditionModel(**LARGE), facts, latent, torch.float32)
    return count(model, config).peak, real


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="latent side of the large network")
    parser.add_argument("--skip-large", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    common = {"fake_updates": 1, "warmup_steps": 0}
    print("| network | settings | counted MiB | measured MiB | counted / measured |")
    print("|---|---|---|---|---|")
    rows = [(f"emoji-{name}", values, lambda c, n=name: embedded(n, c))
            for name in ("sd1", "sd3") for values in MANY]  # fmt: skip
    if not options.skip_large:
        name = f"random SD1 layout, latent side {options.size}"
        rows += [(name, values, lambda c: large(options.size, c)) for values in FEW]
    for name, values, work in rows:
        counted, real = work(DistillConfig.from_dict(common | values))
        words = ", ".join(f"{key} {value}" for key, value in values.items())
        print(f"| {name} | {words} | {counted / 2**20:.1f} | {real / 2**20:.1f} "
              f"| {counted / real:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
