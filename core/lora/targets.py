"""Which modules of a network the entries of a LoRA file belong to, whatever names they bear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoraError
from ..families.base import Config, Family, TensorSource
from .keys import LoraModule
from .math import LoraPair

SHOWN = 6


@dataclass(frozen=True)
class Target:
    """A network module, and how it lies in the (maybe fused) weight that the file speaks of."""

    module: str
    source: TensorSource


def targets_by_name(
    modules: Iterable[str], family: Family, config: Config
) -> dict[str, list[Target]]:
    """Targets of every plain name: a module's in diffusers, its checkpoint's, its part's there."""
    found: dict[str, list[Target]] = {}
    for module in modules:
        own = module.replace(".", "_")
        found[own] = [Target(module, TensorSource(module))]
        if own.endswith("_to_out_0"):
            found[own[:-2]] = found[own]
    for module in modules:
        try:
            source = family.layout.tensor_source(f"{module}.weight", config)
        except (KeyError, ValueError, IndexError):
            continue  # a module without a tensor of its own in checkpoints
        stored = source.key.removesuffix(".weight").replace(".", "_")
        if stored != module.replace(".", "_"):
            found.setdefault(stored, []).append(Target(module, source))
        if source.part is not None:  # OMI's names: q, k and v are parts 0, 1 and 2 of `qkv`
            found[f"{stored}_{source.part}"] = [Target(module, TensorSource(module))]
    return found


def resolve(
    modules: Mapping[str, LoraModule], targets: Mapping[str, list[Target]], file_name: str
) -> dict[str, list[Target]]:
    """The targets of every module of the file; raises and names those that have none."""
    left = [name for name in modules if name not in targets]
    if len(left) == len(modules):
        raise LoraError(
            f"{file_name} fits nothing in this model: none of its {len(modules)} modules exists "
            f"there (the first is {left[0] if left else 'missing'}). It was made for another model."
        )
    if left:
        shown = ", ".join(left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
        raise LoraError(
            f"{file_name} holds {len(left)} modules that this model does not have: {shown}. It was "
            "made for another model, or its key names are not known here."
        )
    return {name: targets[name] for name in modules}


def part_of(pair: LoraPair, target: Target, shape: torch.Size) -> LoraPair:
    """The share of a file's pair that belongs to one module, whose weight has `shape`."""
    up = pair.up
    if target.source.part is not None:
        first = target.source.first_row(shape[0])
        up = up[first : first + shape[0]]
    if target.source.change == "swap_halves":
        up = swap_halves(up)
    return LoraPair(pair.down, up, pair.scale)


def swap_halves(rows: Tensor) -> Tensor:
    """The tensor with the two halves of its rows exchanged; its own inverse."""
    first, second = rows.chunk(2)
    return torch.cat([second, first])
