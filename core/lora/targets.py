"""Which modules of a network the entries of a LoRA file belong to, whatever names they bear."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoraError
from ..families.base import Config, Family, TensorSource
from .keys import LoraModule
from .math import Difference, LoraPair, Update

SHOWN = 6
# Layers that diffusers joins (fuse_projections), and what they consist of.
JOINED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True)
class Target:
    """A network module, and how it lies in the (maybe fused) weight that the file speaks of."""

    module: str
    source: TensorSource


def modules_of(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """The modules that have a weight, and its shape; of parameters by name."""
    ending = ".weight"
    return {name[: -len(ending)]: shape for name, shape in shapes.items() if name.endswith(ending)}


def targets_by_name(
    shapes: Mapping[str, torch.Size], family: Family, config: Config
) -> dict[str, list[Target]]:
    """Targets of every plain name: a module's in diffusers, its checkpoint's, its part's there.

    Args:
        shapes: of the network's parameters, by diffusers name.
    """
    modules = modules_of(shapes)
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
    for name, parts in _joined(found).items():
        shares = tuple(modules[part][0] for part in parts)
        found[name] = [
            Target(part, TensorSource(name, number, shares=shares))
            for number, part in enumerate(parts)
        ]
    return found


def _joined(targets: Mapping[str, list[Target]]) -> dict[str, list[str]]:
    """The modules of each layer that diffusers may have joined, by the layer's plain name."""
    found = {}
    for name, (first, *more) in targets.items():
        for joined, parts in JOINED.items():
            if more or first.source.part is not None or not name.endswith(parts[0]):
                continue
            others = [targets.get(name.removesuffix(parts[0]) + part, []) for part in parts]
            if all(len(places) == 1 for places in others):
                found[name.removesuffix(parts[0]) + joined] = [p[0].module for p in others]
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


def fits(update: Update, target: Target, shape: torch.Size) -> bool:
    """Whether a file's update is one of the stored tensor that has the parameter of `shape`."""
    rows, *others = shape
    rows = target.source.stored_rows(rows)
    if isinstance(update, Difference):
        return _without_ones(update.value.shape) == _without_ones((rows, *others))
    inputs = update.down[0].numel()
    return update.up.shape[0] == rows and inputs == math.prod(others)


def _without_ones(shape: Iterable[int]) -> list[int]:
    """The axes without those of length one at the end, which a 1x1 convolution has."""
    found = list(shape)
    while found and found[-1] == 1:
        found.pop()
    return found


def part_of(update: Update, target: Target, shape: torch.Size) -> Update:
    """The share of a file's update that belongs to one parameter, which has `shape`."""
    if isinstance(update, Difference):
        return Difference(_rows_of(update.value, target, shape), update.scale)
    return LoraPair(update.down, _rows_of(update.up, target, shape), update.scale)


def _rows_of(rows: Tensor, target: Target, shape: torch.Size) -> Tensor:
    if target.source.part is not None:
        first = target.source.first_row(shape[0])
        rows = rows[first : first + shape[0]]
    return swap_halves(rows) if target.source.change == "swap_halves" else rows


def swap_halves(rows: Tensor) -> Tensor:
    """The tensor with the two halves of its rows exchanged; its own inverse."""
    first, second = rows.chunk(2)
    return torch.cat([second, first])
