"""LoRA files onto a MODEL, and the patches that lie on one."""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.errors import LoraError
from .lora_fit import Applied, applied
from .models import Model, attach


@dataclass(frozen=True)
class LoadedLora:
    """A MODEL with a LoRA, and how many of the LoRA's modules took hold of it."""

    model: Model
    applied: Applied


def load_lora(model: Model, path: Path, strength: float) -> LoadedLora:
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
        attach(patched, "lora_metadata", metadata)
    return LoadedLora(patched, applied(model, patched))


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
