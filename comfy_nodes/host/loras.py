"""LoRA files onto a MODEL, and the patches that lie on one.

Names alone do not tell whether a LoRA fits: SD3.5 medium and large, or a checkpoint and its
inpainting version, share them with weights of other sizes. ComfyUI finds that out while it samples,
and only writes a log.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.errors import LoraError
from .models import Model

Patch = tuple[Any, ...]
"""(strength, update, factor of the weight, part of the weight or None, function)."""


@dataclass(frozen=True)
class Applied:
    """How many updates of a LoRA lie on a MODEL, and how many of them have another size."""

    count: int
    misfits: int = 0


def load_lora(model: Model, path: Path, strength: float) -> tuple[Model, Applied]:
    """A clone of the MODEL with the LoRA's patches, its metadata attached as core loaders do."""
    import comfy.sd
    import comfy.utils

    try:
        weights, metadata = comfy.utils.load_torch_file(
            str(path), safe_load=True, return_metadata=True
        )
    except Exception as error:  # whatever a damaged file makes a loader raise
        raise LoraError(
            f"{path.name} cannot be read ({error}). It is damaged or cut off; download it again."
        ) from error
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)
    if metadata:
        patched.set_attachments("lora_metadata", metadata)
    return patched, _applied(model, patched)


def _applied(before: Model, after: Model) -> Applied:
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA, as core's nodes pass them on."""
    import comfy.utils

    return comfy.utils.load_torch_file(str(path), safe_load=True)


def only_strength(model: Model) -> float | None:
    """Strength of the one LoRA whose patches lie on a MODEL; None if there may be several."""
    lists = getattr(model, "patches", {}).values()
    if any(len(patches) != 1 for patches in lists):
        return None
    strengths = {float(patch[0]) for (patch,) in lists}
    return strengths.pop() if len(strengths) == 1 else None


def patch_count(model: Model) -> int:
    """How many weight patches lie on a MODEL."""
    return sum(len(patches) for patches in getattr(model, "patches", {}).values())


def bypass_hook() -> type[Any] | None:
    """The host's hook that adds a LoRA to a layer's output, None where it has none."""
    import comfy.weight_adapter as adapters

    return getattr(adapters, "BypassForwardHook", None)
