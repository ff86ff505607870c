"""One LoRA of each kind under every trainer's names and in every number format: one update."""

from __future__ import annotations

import zlib
from pathlib import Path

import lora_networks
import pytest
import torch
from dpdmd_studio.core.families import Config, Family
from dpdmd_studio.core.lora.file import lora_deltas, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from lora_networks import by_module, weight_shapes
from safetensors.torch import save_file
from torch import Tensor

FAMILIES = ("sd1", "sdxl", "sd3")
RANK = 2
FORMATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn,
           torch.float8_e5m2)  # fmt: skip
STEMS = {
    "kohya": "lora_unet_{_}",
    "OneTrainer": "lora_transformer_{_}",
    "LyCORIS": "lycoris_{_}",
    "diffusers, UNet": "unet.{.}",
    "diffusers, transformer": "transformer.{.}",
    "PEFT": "base_model.model.{.}",
    "compiled": "lora_unet__orig_mod_{_}",
    "compiled, dotted": "unet._orig_mod.{.}",
    "ComfyUI, dotted": "diffusion_model.{ldm}",
    "checkpoint's names": "model.diffusion_model.{ldm}",
    "kohya, checkpoint's names": "lora_unet_{ldm_}",
}
ENDINGS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "PEFT": ("lora_A.weight", "lora_B.weight"),
    "PEFT, default": ("lora_A.default.weight", "lora_B.default.weight"),
    "PEFT, other": ("lora_A.default_0.weight", "lora_B.default_0.weight"),
    "older diffusers": ("lora.down.weight", "lora.up.weight"),
    "attention processors": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}


def exact(*shape: int, seed: int) -> Tensor:
    """Numbers that fp8 of either kind holds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator) / 4


def parts(kind: str, shape: torch.Size, seed: int) -> dict[str, Tensor]:
    """The tensors of one module by ending; one that a kind does not suit is a plain LoRA."""
    (rows, columns), kernel = shape[:2], shape[2:]
    ones, flat = (1,) * len(kernel), columns * kernel.numel()
    if kind == "LoCon with a core" and kernel.numel() > 1:
        sizes = {"lora_down.weight": (RANK, columns, *ones), "lora_up.weight": (rows, RANK, *ones),
                 "lora_mid.weight": (RANK, RANK, *kernel)}  # fmt: skip
    elif kind == "LoHa":
        sizes = {f"hada_w{n}_a": (rows, RANK) for n in "12"}
        sizes |= {f"hada_w{n}_b": (RANK, flat) for n in "12"}
    elif kind == "LoKr" and rows % 2 == 0 == columns % 2:
        sizes = {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, columns // 2, *kernel)}
    else:
        sizes = {
            "lora_down.weight": (RANK, columns, *kernel),
            "lora_up.weight": (rows, RANK, *ones),
        }
    return {end: exact(*size, seed=seed + n) for n, (end, size) in enumerate(sizes.items())}


def stem(way: str, module: str, family: Family, config: Config) -> str | None:
    """What a module is called; None where the checkpoint has it in one with others."""
    source = family.layout.tensor_source(f"{module}.weight", config)
    if "ldm" in way and (source.part is not None or source.change != "none"):
        return None
    ldm = source.key.removesuffix(".weight")
    names = {"{_}": module.replace(".", "_"), "{.}": module, "{ldm}": ldm}
    for place, name in (names | {"{ldm_}": ldm.replace(".", "_")}).items():
        way = way.replace(place, name)
    return way


def update(path: Path, name: str) -> dict[str, Tensor]:
    """What the file changes each weight by."""
    network, family, config = built(name)
    shapes = parameter_shapes(network)
    found = lora_deltas(read_lora(path), family, config, shapes)
    return by_module({key: delta(found[key], shapes[key]) for key in found})


BUILT: dict[str, tuple] = {}


def built(name: str) -> tuple:
    if name not in BUILT:
        BUILT[name] = lora_networks.build(name)
    return BUILT[name]


def write(path: Path, name: str, kind: str, way: str, dtype: torch.dtype, ends=None) -> set[str]:
    """Write the LoRA; the modules that could be named this way."""
    network, family, config = built(name)
    shapes, tensors, named = weight_shapes(network), {}, set()
    for module in family.lora.modules(config, "full"):
        begin = stem(way, module, family, config)
        if begin is None:
            continue
        named.add(module)
        for end, value in parts(kind, shapes[module], zlib.crc32(module.encode())).items():
            new = dict(zip(ENDINGS["kohya"], ends, strict=True)).get(end, end) if ends else end
            tensors[f"{begin}.{new}"] = value.to(dtype)
    save_file(tensors, path)
    return named


KINDS = ("LoRA", "LoCon with a core", "LoHa", "LoKr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_trainers_names_and_every_format_give_the_same_update(name, kind, tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, name, kind, STEMS["kohya"], torch.float32)
    expected = update(path, name)
    assert any(value.any() for value in expected.values())
    for number, (label, way) in enumerate(STEMS.items()):
        named = write(path, name, kind, way, FORMATS[number % len(FORMATS)])
        same(update(path, name), expected, named, label)
    for label, ends in ENDINGS.items() if kind == "LoRA" else ():
        named = write(path, name, kind, STEMS["diffusers, UNet"], torch.float16, ends)
        same(update(path, name), expected, named, label)
    for dtype in FORMATS:
        named = write(path, name, kind, STEMS["kohya"], dtype)
        same(update(path, name), expected, named, str(dtype))


def same(found: dict[str, Tensor], expected: dict[str, Tensor], named: set[str], label: str):
    """Assert that what is changed is the same to the bit."""
    assert found.keys() == named, label
    assert all(torch.equal(value, expected[module]) for module, value in found.items()), label
