"""Memory of one update of a given network and settings, counted without computing it.

The network has its real layout, its tensors are fake (shape and format, no numbers): the updates of
`distiller` run on them, without the calls that leave nothing behind, and every tensor alive at once
is counted. An allocator's rounding and a driver's own memory come on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...app.config.distill_config import DistillConfig
from ...app.estimate import matched_graphs
from ...core.families import Detection, Family, LoraTargets, family
from ..loading.checkpoint import find_components
from ..method.distiller import Batch, Distiller
from ..model.conditioning import Conditioning
from ..model.network import NetworkCall, schedule_of
from ..model.roles import AdapterRoles
from ..training.optimizers import moment_bytes
from .live_bytes import LiveBytes
from .offload import OffloadRing
from .packed_base import RING, store_layers
from .weight_formats import FORMATS, CountedNf4

T5_TOKENS, CLIP_TOKENS = 256, 77
SIZE_NUMBERS = 6  # SDXL: original size, crop and target size


@dataclass(frozen=True)
class UpdateMemory:
    """Bytes alive at the worst moment of a student update, a fake update or an optimizer's step.

    Attributes:
        base: the frozen network as it is stored, or the two buffers for its offloaded layers.
        adapters: both LoRAs, float32.
        moments: Adam's, of both; offloaded ones only during a step.
        gradients: of the adapter that is trained at that moment.
        activations: all else: activations and intermediate results.
    """

    base: int
    adapters: int
    moments: int
    gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return self.base + self.adapters + self.moments + self.gradients + self.activations


def checkpoint_memory(
    path: Path,
    detection: Detection,
    config: DistillConfig,
    dtype: torch.dtype,
    encoders: dict[str, Path] | None = None,
) -> UpdateMemory:
    """The memory of an update of the network in a checkpoint; only its header is read.

    Args:
        dtype: number format of the network.
        encoders: text-encoder files, where the checkpoint lacks some.

    Raises:
        CheckpointError: missing, damaged or incomplete files.
    """
    parts, used = find_components(path, encoders or {}, [])
    parts.denoiser.check()
    with torch.device("meta"):
        network = parts.denoiser.factory()
    sizes = config.resolutions or ((detection.resolution, detection.resolution),)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    latent = (detection.latent_channels, height // 8, width // 8)
    tokens = T5_TOKENS if "t5xxl" in used else 0
    clip = [part.config for kind, part in used.items() if kind != "t5xxl"]
    tokens += clip[0]["max_position_embeddings"] if clip else CLIP_TOKENS
    return update_memory(network, family(detection.family), config, latent, dtype, tokens=tokens)


def update_memory(
    network: nn.Module,
    facts: Family,
    config: DistillConfig,
    latent: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    tokens: int = CLIP_TOKENS,
) -> UpdateMemory:
    """The memory of an update of `network`, which is filled with fake tensors for that.

    Args:
        network: on the meta device, without adapters.
        latent: (C, h, w) of one picture.
        dtype: number format of the frozen network.
        tokens: of an encoded prompt.
    """
    nn.Module.to(network, dtype).requires_grad_(False).eval()
    layers: LoraTargets = "full" if config.lora_layers == "full" else "attention"
    layout: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    with torch.device("meta"):
        roles = AdapterRoles(
            network,
            facts.lora_modules(layout, layers),
            student_rank=config.student_rank,
            fake_rank=config.fake_rank,
            seed=0,
        )
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        _fill(network)
        _store(network, config)
    sizes = {role: _bytes(roles.parameters(role)) for role in ("student", "fake")}
    adapters = sum(sizes.values())
    base = _bytes([*network.parameters(), *network.buffers()]) - adapters
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    call = NetworkCall(network, facts, facts.predictions[0], schedule_of(facts), "cpu")
    distiller = Distiller(call, roles, _shortened(config), facts.guidance_scale)
    size = config.micro_batch_size or config.batch_size
    with fake:
        batch = _batch(min(size, config.batch_size), latent, layout, dtype, tokens)
    adding = config.objective in ("dp_dmd", "no_detach") or size < config.batch_size
    peaks = _peaks(network, roles, distiller, batch, fake, adding=adding)
    moments = {role: _moments(roles, role, config) for role in sizes}
    kept = 0 if config.offload_optimizer else sum(moments.values())
    worst = [(kept, sizes[role], peak - base - adapters - sizes[role])
             for role, peak in peaks.items()]  # fmt: skip
    # the optimizer's step needs no temporary copy of the adapter
    worst += [(kept or moments[role], sizes[role], 0) for role in sizes]
    return UpdateMemory(base, adapters, *max(worst, key=sum))


def _moments(roles: AdapterRoles, role: str, config: DistillConfig) -> int:
    return moment_bytes([p.numel() for p in roles.parameters(role)], config.optimizer)


def _peaks(
    network: nn.Module,
    roles: AdapterRoles,
    distiller: Distiller,
    batch: Batch,
    fake: FakeTensorMode,
    *,
    adding: bool,
) -> dict[str, int]:
    """Most bytes alive in a student update and in a fake update, the network's included.

    A fake update of no larger an adapter needs less than the student's, and is left out.

    Args:
        adding: whether gradients of an anchored step or of other pictures are there already.
    """
    generator = torch.Generator().manual_seed(0)
    short, resident = distiller.config, [*network.parameters(), *network.buffers()]
    trained = roles.parameters("student")
    if adding:
        with fake:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
    with fake, LiveBytes([*resident, *_gradients(trained)]) as counted:
        _, samples = distiller.student_update(batch, generator)
    peaks = {"student": counted.peak}
    if short.fake_rank <= short.student_rank:
        return peaks
    for parameter in trained:
        parameter.grad = None
    with fake, LiveBytes(resident) as counted:
        distiller.fake_update(samples, generator)
    return peaks | {"fake": counted.peak}


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _shortened(config: DistillConfig) -> DistillConfig:
    """Settings with the fewest network calls that have the same peak.

    That comes while a student update matches distributions: the matched steps keep their graph, and
    the teacher runs beside it. What needs no graph leaves nothing behind; an anchored step's is
    gone before, but for its gradients.
    """
    steps = matched_graphs(config)
    return replace(
        config, objective="dmd", micro_batch_size=0, num_steps=steps, teacher_steps=steps,
        gradient_steps="all" if config.gradient_steps == "all" else "last",
    )  # fmt: skip


def _batch(
    size: int,
    latent: tuple[int, int, int],
    layout: dict[str, Any],
    dtype: torch.dtype,
    tokens: int,
) -> Batch:
    """Inputs of one update, of the family's sizes."""
    width = layout.get("joint_attention_dim") or layout["cross_attention_dim"]
    pooled = layout.get("pooled_projection_dim") or 0
    if layout.get("addition_embed_type") == "text_time":
        sizes = SIZE_NUMBERS * layout["addition_time_embed_dim"]
        pooled = layout["projection_class_embeddings_input_dim"] - sizes

    def prompts() -> Conditioning:
        return Conditioning(
            torch.zeros(size, tokens, width, dtype=dtype),
            torch.zeros(size, pooled, dtype=dtype) if pooled else None,
        )

    return Batch(torch.zeros(size, *latent), prompts(), prompts())


def _fill(network: nn.Module) -> None:
    """Put fake tensors of the CPU in the place of those without a device."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fresh = torch.empty(value.shape, dtype=value.dtype)
                module._parameters[name] = nn.Parameter(fresh, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def _store(network: nn.Module, config: DistillConfig) -> None:
    """Store the base as the settings say; what waits in the CPU's memory is not counted."""
    kind, device = config.base_weights, torch.device("cpu")
    ring = OffloadRing(device) if config.offload_base else None
    if ring is not None:
        network.register_module(RING, ring)
    store_layers(network, CountedNf4() if kind == "nf4" else FORMATS[kind](), ring, device)


def _bytes(tensors: list[Any]) -> int:
    """Bytes of tensors."""
    total: int = 0
    for tensor in tensors:
        assert isinstance(tensor, Tensor)
        total += tensor.numel() * tensor.element_size()
    return total
