"""The tensors of a LoRA file: the key names, scales and fused layers that each format asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..errors import LoraError
from ..families.base import Config, Family
from .math import LoraPair, block_diagonal, cast, with_alpha, with_scale_in_up
from .targets import swap_halves

Format = Literal["kohya", "peft"]


def lora_tensors(
    family: Family,
    config: Config,
    weights: Mapping[str, LoraPair],
    dtype: torch.dtype,
    format: Format,
) -> dict[str, Tensor]:
    """The file's tensors by key, in their final dtype (alpha always fp32, so that it is exact)."""
    if not weights:
        raise LoraError("There are no LoRA weights to write.")
    checked = {name: pair.check(name) for name, pair in weights.items()}
    if format == "peft":
        prefix = family.lora.peft_prefix
        baked = {prefix + name: with_scale_in_up(pair) for name, pair in checked.items()}
        return _halves(baked, dtype, ".lora_A.weight", ".lora_B.weight")
    if family.lora.fused:
        fused = _fused(family, config, checked)
        if family.lora.dotted:
            return _halves(fused, dtype, ".lora_A.weight", ".lora_B.weight")
        return _halves(fused, dtype, ".lora_down.weight", ".lora_up.weight")
    alpha = common_alpha(checked)
    named = {
        family.lora_key(name, config).name: with_alpha(pair, alpha)
        for name, pair in checked.items()
    }
    tensors = _halves(named, dtype, ".lora_down.weight", ".lora_up.weight")
    return tensors | {f"{name}.alpha": torch.tensor(alpha) for name in named}


def common_alpha(weights: Mapping[str, LoraPair]) -> float:
    """The one alpha that all modules of a file get: most modules' own scale * rank.

    diffusers misses differing alphas of attention layers (it looks for them under older names).
    """
    counts = Counter(pair.scale * pair.rank for pair in weights.values() if pair.scale)
    return float(counts.most_common(1)[0][0]) if counts else 1.0


def _halves(
    pairs: Mapping[str, LoraPair], dtype: torch.dtype, down: str, up: str
) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in pairs.items():
        stored = cast(pair, dtype, name)
        tensors[name + down], tensors[name + up] = stored.down, stored.up
    return tensors


def _fused(family: Family, config: Config, weights: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """Pairs under the checkpoint's names, scale in `up`; parts of fused layers joined."""
    single: dict[str, LoraPair] = {}
    parts: dict[str, dict[int, LoraPair]] = {}
    shares: dict[str, tuple[int, ...]] = {}
    for module, pair in weights.items():
        key = family.lora_key(module, config)
        if key.part is not None:
            parts.setdefault(key.name, {})[key.part] = pair
            shares[key.name] = key.shares
            continue
        baked = with_scale_in_up(pair)
        if family.layout.tensor_source(f"{module}.weight", config).change == "swap_halves":
            baked = LoraPair(baked.down, swap_halves(baked.up))
        single[key.name] = baked
    return single | {name: block_diagonal(found, shares[name]) for name, found in parts.items()}
