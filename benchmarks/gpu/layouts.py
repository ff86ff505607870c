"""Random networks in the real layouts, made on the device, and what trains them here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from count_memory import LAYOUTS, SIDES, TOKENS
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.families import family
from dpdmd_studio.core.recipe.few_step import family_schedule
from dpdmd_studio.trainer.distributed import joined
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.model.network import NetworkCall, frozen_dtype
from dpdmd_studio.trainer.model.roles import AdapterRoles, RoleNetwork
from dpdmd_studio.trainer.training.batches import Batch, stream_generator
from dpdmd_studio.trainer.training.in_force import SettingsInForce
from dpdmd_studio.trainer.training.loop import Trainer
from measuring import Options, Unavailable
from torch import Tensor, nn

SMALL = {"block_out_channels": (16, 32), "cross_attention_dim": 32, "norm_num_groups": 8,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
         "layers_per_block": 1, "attention_head_dim": 2}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "sd1": SMALL,
    "sdxl": SMALL | {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                     "projection_class_embeddings_input_dim": 80,
                     "use_linear_projection": True},
    "sd3": {"sample_size": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
            "caption_projection_dim": 32, "joint_attention_dim": 32, "pooled_projection_dim": 32,
            "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
}  # fmt: skip


def random_network(name: str, options: Options, device: torch.device) -> nn.Module:
    """A frozen network with random weights, made on `device` and nowhere else first.

    Weights are normal with a variance of 1 / inputs; norms are ones, biases zero.
    """
    layout = (TINY if options.tiny else LAYOUTS)[name]
    with torch.device("meta"):
        made = SD3Transformer2DModel if name == "sd3" else UNet2DConditionModel
        network: nn.Module = made(**layout)
    network = nn.Module.to(network, options.number_format).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.dim() > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.fill_(1.0 if key.endswith("weight") else 0.0)
    return network.eval().requires_grad_(False)


class Inputs:
    """Random prompts and noise of a family's sizes, drawn as a run draws them."""

    def __init__(self, call: NetworkCall, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._layout: Any = call.network.config
        self._name, self._shape, self._device = call.family.name, shape, call.device
        self._dtype = dtype

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """The random draws of one use."""
        return stream_generator(0, stream, step, index)

    def _prompts(self, generator: torch.Generator) -> Conditioning:
        layout, size = self._layout, self._shape[0]
        width = layout.get("joint_attention_dim") or layout["cross_attention_dim"]
        pooled = layout.get("pooled_projection_dim") or 0
        if layout.get("addition_embed_type") == "text_time":
            sizes = 6 * layout["addition_time_embed_dim"]
            pooled = layout["projection_class_embeddings_input_dim"] - sizes
        found = Conditioning(
            torch.randn(size, TOKENS[self._name], width, generator=generator),
            torch.randn(size, pooled, generator=generator) if pooled else None,
        )
        return found.to(self._device, self._dtype)

    def batch(self, stream: str, step: int, index: int = 0) -> Batch:
        """One update's inputs."""
        generator = self.generator(stream, step, index)
        noise = torch.randn(self._shape, generator=generator).to(self._device)
        return Batch(noise, PromptPair(self._prompts(generator), self._prompts(generator)))


def settings(options: Options, **values: Any) -> DistillConfig:
    """A configuration; settings that this version lacks end the case with a reason."""
    known = {spec.name for spec in dataclasses.fields(DistillConfig)}
    missing = sorted(set(values) - known)
    if missing:
        raise Unavailable(f"this version has no setting {', '.join(missing)}")
    short = {"student_rank": 4, "fake_rank": 4, "fake_updates": 1, "teacher_steps": 4}
    small = short if options.tiny else {}
    return DistillConfig.from_dict({"warmup_steps": 0} | small | values)


def make_call(
    name: str, options: Options, config: DistillConfig, *, stored: bool = True
) -> NetworkCall:
    """A network, its base stored as the settings say, and its call."""
    facts = family(name)
    kind, offload = getattr(config, "base_weights", "keep"), getattr(config, "offload_base", False)
    elsewhere = stored and (kind != "keep" or offload)
    network = random_network(name, options, torch.device("cpu") if elsewhere else options.place)
    if elsewhere:
        from dpdmd_studio.trainer.memory.packed_base import store_base

        store_base(network, kind, offload=offload, device=options.place)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    prediction, schedule = facts.sampling.predictions[0], family_schedule(facts)
    dtype = frozen_dtype(network)
    return NetworkCall(network, half_of(facts), prediction, schedule, options.place, dtype)


def latent_shape(name: str, options: Options, config: DistillConfig, side: int | None) -> tuple:
    """(B, C, h, w) of an update at a resolution; tiny networks see 8 x 8."""
    small = 8 if options.tiny else (side or SIDES[name]) // 8
    return config.batch_size, 16 if name == "sd3" else 4, small, small


def make_trainer(
    name: str,
    options: Options,
    config: DistillConfig,
    side: int | None = None,
    prepare: Callable[[nn.Module], object] = lambda network: None,
) -> Trainer:
    """What a run trains with, on random inputs.

    Args:
        side: pixels; None: the family's own.
        prepare: changes the network before it gets adapters.
    """
    call = make_call(name, options, config)
    prepare(call.network)
    modules = call.family.lora.modules(dict(call.network.config), config.lora_layers)  # type: ignore[arg-type]
    ranks = {"student_rank": config.student_rank, "fake_rank": config.fake_rank}
    roles = AdapterRoles(call.network, modules, **ranks, seed=0)
    in_force = SettingsInForce(config, Guidance(call.family.sampling.guidance_scale))
    inputs = Inputs(call, latent_shape(name, options, config, side), options.number_format)
    return Trainer(RoleNetwork(call, roles), inputs, in_force, joined())  # type: ignore[arg-type]


def resident(trainer: Trainer) -> list[Tensor]:
    """Everything that lives between updates."""
    network = trainer.network.call.network
    found: list[Tensor] = [*network.parameters(), *network.buffers()]
    for optimizer in trainer.optimizers.values():
        found += [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return found
