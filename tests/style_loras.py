"""Small style LoRAs for the tiny checkpoints, as other trainers write them: with text encoders."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from dpdmd_studio.core.lora.layout import lora_tensors
from dpdmd_studio.core.lora.math import LoraPair
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint, open_checkpoint
from lora_networks import weight_shapes
from safetensors.torch import save_file

# layers that a student does not train, by family
EXTRA = {
    "sd1": ("conv_in", "time_embedding.linear_1"),
    "sdxl": ("conv_out", "add_embedding.linear_1"),
    "sd3": ("context_embedder", "norm_out.linear"),
}
CLIP = "text_model.encoder.layers"
TE_LAYERS = {
    "clip_l": (f"{CLIP}.0.self_attn.q_proj", f"{CLIP}.1.mlp.fc1"),
    "clip_g": (f"{CLIP}.0.self_attn.v_proj", f"{CLIP}.1.mlp.fc2"),
    "t5xxl": (
        "encoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.1.layer.1.DenseReluDense.wo",
    ),
}
KOHYA = {
    "sd1": {"clip_l": "lora_te_"},
    "sdxl": {"clip_l": "lora_te1_", "clip_g": "lora_te2_"},
    "sd3": {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5xxl": "lora_te3_"},
}
PEFT = {"clip_l": "text_encoder.", "clip_g": "text_encoder_2.", "t5xxl": "text_encoder_3."}


@dataclass
class Style:
    """A style LoRA on disk and what it is made of, by the modules' own names."""

    path: Path
    denoiser: dict[str, LoraPair]
    encoders: dict[str, dict[str, LoraPair]] = field(default_factory=dict)


@functools.cache
def plain(path: Path, dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    """The checkpoint as it is; not to be changed."""
    return open_checkpoint(path, dtype=dtype, device="cpu").load()


def encoder_shapes(checkpoint: LoadedCheckpoint, kind: str) -> dict[str, torch.Size]:
    """Weight shapes of an encoder, every name beginning as in files."""
    outer = "" if kind == "t5xxl" else "text_model."
    shapes = checkpoint.encoders[kind].parameter_shapes
    return {
        outer + name.removeprefix(outer).removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight")
    }


def style(
    path: Path,
    checkpoint: Path,
    *,
    rank: int = 3,
    seed: int = 5,
    size: float = 0.05,
    encoders: bool = True,
    denoiser: bool = True,
    form: str = "kohya",
) -> Style:
    """A random style LoRA for the checkpoint; every pair has alpha = rank / 2, so scale 0.5."""
    base = plain(checkpoint)
    family, config = base.family, base.config
    generator = torch.Generator().manual_seed(seed)

    def pair(shape: torch.Size) -> LoraPair:
        down = torch.randn(rank, *shape[1:], generator=generator) * size
        up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
        return LoraPair(down.half().float(), (up * size).half().float(), 0.5)

    shapes = weight_shapes(base.network)
    names = [*family.lora.modules(config, "attention"), *EXTRA[family.name]] if denoiser else []
    found = Style(path, {name: pair(shapes[name]) for name in names})
    tensors = {}
    if denoiser:
        tensors = lora_tensors(family, config, found.denoiser, torch.float32, form)  # type: ignore[arg-type]
    for kind in base.encoders if encoders else ():
        known = encoder_shapes(base, kind)
        found.encoders[kind] = {name: pair(known[name]) for name in TE_LAYERS[kind]}
        for name, item in found.encoders[kind].items():
            tensors |= _halves(KOHYA[family.name][kind], PEFT[kind], name, item, form)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return found


def _halves(kohya: str, peft: str, name: str, pair: LoraPair, form: str) -> dict[str, torch.Tensor]:
    if form == "peft":
        up = pair.up * pair.scale
        return {f"{peft}{name}.lora_A.weight": pair.down, f"{peft}{name}.lora_B.weight": up}
    key = kohya + name.replace(".", "_")
    return {
        f"{key}.lora_down.weight": pair.down,
        f"{key}.lora_up.weight": pair.up,
        f"{key}.alpha": torch.tensor(pair.scale * pair.rank),
    }


def change(pair: LoraPair, shape: torch.Size) -> torch.Tensor:
    """What a pair adds, in fp64."""
    product = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
    return (pair.scale * product).reshape(shape)
