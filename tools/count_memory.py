"""Counts the memory of one update on fake tensors, and holds the arithmetic of an estimate to it.

    python tools/count_memory.py [--models sd1 sdxl sd3 sd35-large anima zimage] [--write]

Prints, for each setting, what is alive at the worst moment of an update of the published model,
what `app/estimate.py` reckons, and their ratio. Where a change of the update moves the count, fit
the families' `cost` anew and `--write` tests/goldens/counted-memory.json, which a test holds the
arithmetic to. All take about half an hour on one core.

The network has its real layout, its tensors are fake (shape and format, no numbers): the updates of
`trainer/method` run on them, without the calls that leave nothing behind. There is no autocast,
whose rules differ by device. An allocator's rounding and a driver's own memory come on top.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.estimate import Memory, arithmetic_memory, supervised_graphs
from dpdmd_studio.core.diffusion.guidance import Guidance
from dpdmd_studio.core.families import Detection, Family, family, identify
from dpdmd_studio.core.recipe.few_step import family_schedule
from dpdmd_studio.trainer.distributed import joined
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.loading.parts import find_components
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.memory.offload import OffloadRing
from dpdmd_studio.trainer.memory.packed_base import RING, store_layers
from dpdmd_studio.trainer.memory.weight_formats import FORMATS, NF4_BLOCK, Parts, WeightFormat
from dpdmd_studio.trainer.model.conditioning import Conditioning, PromptPair
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.model.roles import AdapterRoles, RoleNetwork
from dpdmd_studio.trainer.training.batches import Batch
from dpdmd_studio.trainer.training.gradients import Gradients
from dpdmd_studio.trainer.training.in_force import SettingsInForce
from dpdmd_studio.trainer.training.optimizers import ADAMW, SMALLEST_8BIT
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

GIB, CPU = 2**30, torch.device("cpu")
TABLE = mounting.ROOT / "tests" / "goldens" / "counted-memory.json"
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
SD35_LARGE: dict[str, Any] = {
    "sample_size": 128, "num_layers": 38, "attention_head_dim": 64, "num_attention_heads": 38,
    "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
}  # fmt: skip
ANIMA: dict[str, Any] = {
    "in_channels": 17, "out_channels": 16, "num_attention_heads": 16, "attention_head_dim": 128,
    "num_layers": 28, "mlp_ratio": 4, "text_embed_dim": 1024, "adaln_lora_dim": 256,
}  # fmt: skip
ZIMAGE: dict[str, Any] = {
    "dim": 3840, "n_layers": 30, "n_heads": 30, "cap_feat_dim": 2560, "axes_dims": (32, 48, 48),
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768}, "sdxl": SDXL, "sd3": SD35_MEDIUM,
    "sd35-large": SD35_LARGE, "anima": ANIMA, "zimage": ZIMAGE,
}  # fmt: skip
TITLES = {"sd35-large": ("sd3", "SD3.5 large")}
"""(family, title) of models that are not the first of their family."""
SIDES = {name: family(TITLES.get(name, (name,))[0]).sampling.resolution for name in LAYOUTS}
CHANNELS = {"sd1": 4, "sdxl": 4, "sd3": 16, "sd35-large": 16, "anima": 16, "zimage": 16}
CLIP_TOKENS, T5_TOKENS, ANIMA_TOKENS, ZIMAGE_TOKENS = 77, 256, 512, 128
TOKENS = {
    "sd1": CLIP_TOKENS,
    "sdxl": CLIP_TOKENS,
    "sd3": CLIP_TOKENS + T5_TOKENS,
    "sd35-large": CLIP_TOKENS + T5_TOKENS,
    "anima": ANIMA_TOKENS,
    "zimage": ZIMAGE_TOKENS,
}
BLOCK_8BIT = 256
SIZE_NUMBERS = 6  # SDXL: original size, crop and target size

ON: dict[str, Any] = {"gradient_checkpointing": True}
SMALL = {"student_rank": 16, "fake_rank": 16}
ATTENTION = {"lora_layers": "attention"}
MOVED = ON | {"offload_optimizer": True, "base_weights": "int8"}
# Batch 1 at the family's own resolution, rank 64 and all layers, but for what is named.
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"resolution": "512x512"},
    {"resolution": "768x768"},
    {"batch_size": 2},
    SMALL,
    ATTENTION,
    ATTENTION | {"resolution": "768x768"},
    ATTENTION | SMALL,
    {"gradient_steps": "all"},
    ON,
    ON | {"resolution": "512x512"},
    ON | {"resolution": "768x768"},
    ON | {"batch_size": 2},
    ON | {"batch_size": 4},
    ON | SMALL,
    ON | {"gradient_steps": "all"},
    ON | ATTENTION,
    ON | {"fake_rank": 128},
    ON | {"objective": "dmd"},
    MOVED,
    MOVED | {"offload_base": True},
    MOVED | {"base_weights": "nf4"},
)


@dataclass(frozen=True)
class Model:
    """What an update is counted for.

    Attributes:
        make: a network on the meta device, without adapters; made anew for each count.
        latent: (C, h, w) of one image.
        dtype: number format of the frozen network.
        tokens: of an encoded prompt.
    """

    make: Callable[[], nn.Module]
    family: Family
    latent: tuple[int, int, int]
    dtype: torch.dtype = torch.bfloat16
    tokens: int = CLIP_TOKENS

    def network(self) -> nn.Module:
        """The frozen network on the meta device."""
        with torch.device("meta"):
            made = self.make()
        return nn.Module.to(made, self.dtype).requires_grad_(False).eval()


def published_model(name: str, config: DistillConfig) -> Model:
    """A published model at the settings' resolution."""
    facts = family(TITLES.get(name, (name, ""))[0])
    sizes = config.resolutions or ((SIDES[name], SIDES[name]),)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    kind, latent = half_of(facts).network, (CHANNELS[name], height // 8, width // 8)
    return Model(lambda: kind(**LAYOUTS[name]), facts, latent, tokens=TOKENS[name])


def model_in(path: Path, config: DistillConfig, dtype: torch.dtype) -> Model:
    """The network in a checkpoint at the settings' resolution; only its header is read."""
    detection = identify(path)
    parts, used = find_components(path, {})
    sizes = config.resolutions or ((detection.resolution, detection.resolution),)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    tokens = T5_TOKENS if "t5xxl" in used else 0
    clip = [part.config for kind, part in used.items() if kind != "t5xxl"]
    tokens += clip[0]["max_position_embeddings"] if clip else CLIP_TOKENS
    latent = (detection.latent_channels, height // 8, width // 8)
    return Model(parts.denoiser.factory, family(detection.family), latent, dtype, tokens)


def count(model: Model, config: DistillConfig) -> Memory:
    """Bytes alive at the worst moment of a student update, a fake update or an optimizer's step."""
    network = model.network()
    layout: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    layers = "full" if config.lora_layers == "full" else "attention"
    ranks = {"student_rank": config.student_rank, "fake_rank": config.fake_rank}
    with torch.device("meta"):
        roles = AdapterRoles(network, model.family.lora.modules(layout, layers), **ranks, seed=0)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        fill(network, CPU)
        _store(network, config)
    sizes = {role: _bytes(roles.parameters(role)) for role in ("student", "fake")}
    adapters = sum(sizes.values())
    base = _bytes([*network.parameters(), *network.buffers()]) - adapters
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    facts = model.family
    prediction, schedule = facts.sampling.predictions[0], family_schedule(facts)
    call = NetworkCall(network, half_of(facts), prediction, schedule, CPU, model.dtype)
    settings = SettingsInForce(_shortened(config), Guidance(facts.sampling.guidance_scale))
    updates = Gradients(RoleNetwork(call, roles), settings, joined())
    images = min(config.micro_batch_size or config.batch_size, config.batch_size)
    with fake:
        batch = _batch(model, layout, images)
    adding = config.objective in ("dp_dmd", "no_detach") or images < config.batch_size
    peaks = _peaks(updates, batch, fake, adding=adding)
    moments = {
        role: moment_bytes([p.numel() for p in roles.parameters(role)], config.optimizer)
        for role in sizes
    }
    kept = 0 if config.offload_optimizer else sum(moments.values())
    worst = [(kept, sizes[role], peak - base - adapters - sizes[role])
             for role, peak in peaks.items()]  # fmt: skip
    # the optimizer's step needs no temporary copy of the adapter
    worst += [(kept or moments[role], sizes[role], 0) for role in sizes]
    return Memory(base, adapters, *max(worst, key=sum))


def moment_bytes(sizes: Sequence[int], kind: str) -> int:
    """Bytes of Adam's moments of tensors with so many numbers each.

    bitsandbytes keeps a scale for every block of a tensor in 8 bit.
    """
    if kind == ADAMW:
        return sum(8 * size for size in sizes)
    return sum(
        8 * size if size < SMALLEST_8BIT else 2 * size + 8 * -(-size // BLOCK_8BIT)
        for size in sizes
    )


def _peaks(
    updates: Gradients, batch: Batch, fake: FakeTensorMode, *, adding: bool
) -> dict[str, int]:
    """Most bytes alive in a student update and in a fake update, the network's included.

    A fake update of no larger an adapter needs less than the student's, and is left out.

    Args:
        adding: whether gradients of an anchored step or of other images are there already.
    """
    network, roles = updates.network.call.network, updates.network.roles
    generator = torch.Generator().manual_seed(0)
    short, resident = updates.settings.config, [*network.parameters(), *network.buffers()]
    trained = roles.parameters("student")
    if adding:
        with fake:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
    with fake, LiveBytes([*resident, *_gradients(trained)]) as counted:
        _, samples = updates.student(batch, generator)
    peaks = {"student": counted.peak}
    if short.fake_rank <= short.student_rank:
        return peaks
    for parameter in trained:
        parameter.grad = None
    with fake, LiveBytes(resident) as counted:
        updates.fake(samples, generator)
    return peaks | {"fake": counted.peak}


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _shortened(config: DistillConfig) -> DistillConfig:
    """Settings with the fewest network calls that have the same peak.

    That comes while a student update has its DMD gradient: DMD-supervised steps keep their graph,
    and the teacher runs beside it. What needs no graph leaves nothing behind; an anchored step's is
    gone before, but for its gradients.
    """
    steps = supervised_graphs(config)
    return replace(
        config, objective="dmd", micro_batch_size=0, num_steps=steps, teacher_steps=steps,
        gradient_steps="all" if config.gradient_steps == "all" else "last",
    )  # fmt: skip


def _batch(model: Model, layout: dict[str, Any], size: int) -> Batch:
    """Inputs of one update, of the family's sizes."""
    told = PromptPair(*(prompts(model, layout, CPU, size) for _ in range(2)))
    return Batch(torch.zeros(size, *model.latent), told)


def prompts(
    model: Model, layout: dict[str, Any], device: torch.device, size: int = 1
) -> Conditioning:
    """Conditioning of so many images, of the family's sizes."""
    width = layout[model.family.text.context_width]
    pooled = layout.get("pooled_projection_dim") or 0
    if layout.get("addition_embed_type") == "text_time":
        sizes = SIZE_NUMBERS * layout["addition_time_embed_dim"]
        pooled = layout["projection_class_embeddings_input_dim"] - sizes
    like = {"dtype": model.dtype, "device": device}
    return Conditioning(
        torch.zeros(size, model.tokens, width, **like),
        torch.zeros(size, pooled, **like) if pooled else None,
    )


def fill(network: nn.Module, device: torch.device) -> None:
    """Put fake tensors of a device in the place of those without one."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fresh = torch.empty(value.shape, dtype=value.dtype, device=device)
                module._parameters[name] = nn.Parameter(fresh, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                fresh = torch.empty(value.shape, dtype=value.dtype, device=device)
                module._buffers[name] = fresh


class CountedNf4(WeightFormat):
    """The sizes of `Nf4` without its numbers."""

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        count, device = weight.numel(), weight.device
        packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=device)
        return packed, torch.empty(-(-count // NF4_BLOCK), dtype=torch.float32, device=device)

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`."""
        return torch.empty(shape, dtype=dtype, device=parts[0].device)


def _store(network: nn.Module, config: DistillConfig) -> None:
    """Store the base as the settings say; what waits in the CPU's memory is not counted."""
    kind = config.base_weights
    ring = OffloadRing(CPU) if config.offload_base else None
    if ring is not None:
        network.register_module(RING, ring)
    store_layers(network, CountedNf4() if kind == "nf4" else FORMATS[kind](), ring, CPU)


def _bytes(tensors: list[Any]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def reckoned(name: str, config: DistillConfig) -> Memory:
    """What the arithmetic says of the same."""
    return arithmetic_memory(*asked(name, config))


def asked(name: str, config: DistillConfig) -> tuple[Detection, DistillConfig, int]:
    """A published model, the settings, and what its numbers take in 16 bit: an estimate's input."""
    kind, title = TITLES.get(name, (name, ""))
    facts = family(kind)
    sampling = facts.sampling
    detection = Detection(
        kind, title, sampling.predictions[0], CHANNELS[name], "", sampling.resolution, 8
    )
    return detection, config, 2 * facts.cost_of(title).parameters


def config_of(settings: dict[str, Any]) -> DistillConfig:
    """The settings of a count: of one image unless they say otherwise."""
    return DistillConfig.from_dict({"batch_size": 1} | settings)


def counted_rows() -> list[tuple[str, DistillConfig, Memory]]:
    """(model, settings, count) of the table that is kept."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return [
        (name, config_of(settings), Memory(*parts))
        for name, rows in table.items()
        for settings, parts in rows
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count the memory of an update.")
    parser.add_argument("--models", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--write", action="store_true", help="keep the counts for the tests")
    options = parser.parse_args()
    counts: dict[str, list[Any]] = {}
    print("| model | settings | base | adapters | moments | gradients | activations "
          "| counted GiB | arithmetic GiB | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        rows = []
        for settings in SETTINGS:
            config = config_of(settings)
            model = published_model(name, config)
            found = count(model, config)
            parts = list(astuple(found))
            rows.append([settings, parts])
            formula = reckoned(name, config).peak
            words = ", ".join(f"{key} {value}" for key, value in settings.items()) or "as set"
            numbers = " | ".join(f"{n / GIB:.2f}" for n in (*parts, found.peak, formula))
            print(f"| {name} | {words} | {numbers} | {formula / found.peak:.3f} |", flush=True)
        counts[name] = rows
    if options.write:
        kept = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
        table = {name: (kept | counts)[name] for name in LAYOUTS if name in kept | counts}
        lines = [
            f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"
            for name, rows in table.items()
        ]
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
