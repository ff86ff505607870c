"""Whether the patches that ComfyUI made of a LoRA fit the weights they lie on.

Names alone do not tell: SD3.5 medium and large, or a checkpoint and its inpainting version, share
them with weights of other sizes. ComfyUI finds that out while it samples, and only writes a log.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

Patch = tuple[Any, ...]
"""(strength, update, factor of the weight, part of the weight or None, function)."""


@dataclass(frozen=True)
class Applied:
    """How many updates of a LoRA lie on a MODEL, and how many of them have another size."""

    count: int
    misfits: int = 0


def applied(before: Any, after: Any) -> Applied:
    """What the MODEL `after` has on top of `before`."""
    weights = after.model.state_dict()
    known: dict[str, list[Patch]] = getattr(before, "patches", {}) or {}
    added = [
        (weights.get(key), patch)
        for key, patches in after.patches.items()
        for patch in patches[len(known.get(key, ())) :]
    ]
    wrong = sum(weight is not None and not fits(weight, patch) for weight, patch in added)
    return Applied(len(added), wrong)


def fits(weight: Tensor, patch: Patch) -> bool:
    """Whether an update has as many elements as the weight, or the part of it, that it is for.

    Kinds of updates that are not known here, and packed weights, count as fitting.
    """
    found = _size(patch[1])
    if found is None or not weight.is_floating_point():
        return True
    wanted = list(weight.shape)
    part = patch[3] if len(patch) > 3 else None
    if part is not None:
        dimension, _, length = part
        wanted[dimension] = length
    return found == prod(wanted)


def _size(update: Any) -> int | None:
    """Elements of a LoRA's or a difference's update, None for other kinds."""
    if isinstance(update, tuple) and len(update) == 2 and update[0] == "diff":
        return update[1][0].numel() if len(update[1]) == 1 else None
    weights = getattr(update, "weights", None)
    if getattr(update, "name", "") != "lora" or weights is None or len(weights) < 6:
        return None
    up, down, _, middle, _, reshape = weights[:6]
    if reshape is not None:
        return None
    kernel = middle.shape[2:].numel() if middle is not None else 1
    return up.shape[0] * down.shape[1:].numel() * kernel
