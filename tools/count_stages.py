"""Counts what every stage of a run has in memory at its worst moment, for every preset.

    python tools/count_stages.py [--models sd1 sdxl sd3 sd35-large anima zimage] [--write]

A stage that finds too little room works in smaller parts (an encoder a block at a time, one image,
tiles of a picture), so that it is counted in its smallest way: what a card has to have at least.
Prints a line for each preset, and with `--write` keeps the counts in
tests/goldens/counted-stages.json, to which a test holds the estimate and the presets. All is
counted on fake tensors, as in count_memory.py; nothing computes under autocast on any device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting
import torch
from count_memory import (
    CPU,
    GIB,
    LAYOUTS,
    TITLES,
    Model,
    asked,
    count,
    fill,
    prompts,
    published_model,
)
from diffusers import AutoencoderKL
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import PRESETS, SIZES
from dpdmd_studio.app.estimate import memory_of_all_stages
from dpdmd_studio.core.recipe.few_step import family_schedule
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.loading.decoding import TILE
from dpdmd_studio.trainer.loading.vae import WanDecoder
from dpdmd_studio.trainer.memory.live_bytes import LiveBytes
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.model.roles import AdapterRoles
from dpdmd_studio.trainer.text.encoders import HALF_WIDTH
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

TABLE = mounting.ROOT / "tests" / "goldens" / "counted-stages.json"
STAGES = ("encoding", "loading", "update", "step", "drawing", "decoding")
HIDDEN = 4
"""Copies of a prompt's states that a block of an encoder has at once: assumed."""


def _clip(width: int, layers: int, heads: int) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 49408}
    return CLIPTextModel(
        CLIPTextConfig(**sizes, num_hidden_layers=layers, num_attention_heads=heads)
    )


def _t5() -> nn.Module:
    sizes = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu"))


def _qwen3(width: int, inner: int, layers: int, heads: int) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return Qwen3Model(
        Qwen3Config(
            **sizes, num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
            vocab_size=151936,
        )
    )  # fmt: skip


CLIPS = (lambda: _clip(768, 12, 12), lambda: _clip(1280, 32, 20))
ENCODERS: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "sd1": CLIPS[:1],
    "sdxl": CLIPS,
    "sd3": (*CLIPS, _t5),
    "sd35-large": (*CLIPS, _t5),
    "anima": (lambda: _qwen3(1024, 3072, 28, 16), AnimaTextConditioner),
    "zimage": (lambda: _qwen3(2560, 9728, 36, 32),),
}
WIDTHS = (128, 256, 512, 512)


def _kl_decoder(channels: int) -> nn.Module:
    levels = len(WIDTHS)
    return AutoencoderKL(
        block_out_channels=WIDTHS, layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip


def encoding(name: str, tokens: int) -> int:
    """Of the encoder that needs most, a block at a time; the others are not there meanwhile."""
    return max(_in_blocks(make, tokens) for make in ENCODERS[name])


def _in_blocks(make: Callable[[], nn.Module], tokens: int) -> int:
    """What stays (tables of tokens and positions), the largest block, and a prompt's states.

    Wide encoders keep 16-bit weights, and widen those of one layer while it computes.
    """
    with torch.device("meta"):
        model = make()
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    blocks = [block for item in lists for block in item.children()]
    largest = max(blocks, key=_numbers)
    inside = {id(p) for block in blocks for p in block.parameters()}
    stays = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    width = max(p.shape[-1] for p in largest.parameters())
    wide = _width(model) >= HALF_WIDTH
    weight = 2 if wide else 4
    widened = 4 * max(p.numel() for p in largest.parameters()) if wide else 0
    return weight * (stays + _numbers(largest)) + widened + 4 * HIDDEN * tokens * width


def _width(model: nn.Module) -> int:
    config: Any = model.config
    return getattr(config, "d_model", None) or getattr(config, "hidden_size", 0)


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def drawing(model: Model, config: DistillConfig, fake: FakeTensorMode) -> int:
    """What a pass of one guided image makes beside the network, its adapters and moments."""
    network = model.network()
    layout: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    layers = "full" if config.lora_layers == "full" else "attention"
    ranks = {"student_rank": config.student_rank, "fake_rank": config.fake_rank}
    with torch.device("meta"):
        AdapterRoles(network, model.family.lora.modules(layout, layers), **ranks, seed=0)
    facts = model.family
    prediction, schedule = facts.sampling.predictions[0], family_schedule(facts)
    with fake:
        fill(network, CPU)
        told = prompts(model, layout, CPU, 2)
        x = torch.zeros(2, *model.latent, dtype=torch.float32)
        resident = [*network.parameters(), *network.buffers()]
        call = NetworkCall(network, half_of(facts), prediction, schedule, CPU, model.dtype)
        with torch.no_grad(), LiveBytes(resident) as counted:
            before = counted.live
            call(x, torch.tensor([500.0, 500.0]), told)
    return counted.peak - before


def decoding(name: str, channels: int, fake: FakeTensorMode) -> int:
    """The decoder in float32 and one tile of a picture."""
    with torch.device("meta"):
        made = WanDecoder(96, channels) if name == "anima" else _kl_decoder(channels)
    with fake:
        fill(made, CPU)
        parts = [made.decoder, made.post_quant_conv]
        resident = [p for part in parts for p in part.parameters()]
        latents = torch.zeros(1, channels, TILE, TILE)
        with torch.no_grad(), LiveBytes(resident) as counted:
            made(latents) if name == "anima" else made.decode(latents)
    return counted.peak


def stages(name: str, config: DistillConfig) -> dict[str, int]:
    """Bytes of each stage."""
    model = published_model(name, config)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    whole = count(model, config)
    stay = whole.base + whole.adapters
    with torch.device("meta"):
        layer = max(parameter.numel() for parameter in model.network().parameters())
    moments = 0 if config.offload_optimizer else whole.moments
    kept = stay + moments
    of_one = whole.adapters  # Adam's moments of one of two adapters of the same rank
    return {
        "encoding": encoding(name, model.tokens),
        "loading": whole.base + 4 * layer,  # packed from float32, a layer at a time
        "update": whole.peak,
        "step": stay + (moments or of_one) + whole.gradients,
        "drawing": kept + drawing(model, config, fake),
        "decoding": kept + decoding(name, model.latent[0], fake),
    }


def counted_stages() -> list[tuple[str, str, dict[str, int]]]:
    """(model, preset, bytes of each stage) of the table that is kept."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return [(name, memory, row) for name, rows in table.items() for memory, row in rows.items()]


def presets_of(name: str) -> dict[str, dict[str, Any]]:
    """The presets of a model."""
    kind, title = TITLES.get(name, (name, ""))
    return SIZES.get(title, PRESETS[kind])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Count the memory of every stage of a run.")
    parser.add_argument("--models", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--write", action="store_true", help="keep the counts for the tests")
    options = parser.parse_args()
    heads = ["model", "preset", *STAGES, "estimate", "estimate / highest stage"]
    print(f"| GiB: {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    table: dict[str, dict[str, dict[str, int]]] = {}
    for name in options.models:
        for memory, settings in presets_of(name).items():
            config = DistillConfig.from_dict(settings)
            row = stages(name, config)
            table.setdefault(name, {})[memory] = row
            formula = memory_of_all_stages(*asked(name, config))
            numbers = [*(row[stage] for stage in STAGES), formula]
            cells = [f"{number / GIB:.2f}" for number in numbers]
            share = formula / max(row.values())
            print(f"| {' | '.join([name, memory, *cells, f'{share:.3f}'])} |", flush=True)
    if options.write:
        kept = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
        TABLE.write_text(json.dumps(kept | table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
