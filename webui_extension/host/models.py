"""The loaded checkpoint: what it is, where it computes, giving its memory back."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ...core.families import FAMILIES, Family
from ...core.recipe.resolve import ModelFacts

FORGE_PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v_prediction": "v", "const": "flow"}
ZERO_SNR_SIGMA = 1000.0
"""A VP model whose highest sigma is above this has zero terminal SNR; usual ones end at 14.6."""


def model_facts(sigmas: Tensor | None = None) -> ModelFacts | None:
    """Facts of the loaded checkpoint; None while none is loaded.

    Args:
        sigmas: those of the denoiser in use, increasing; without them it is not known
            whether the terminal SNR is zero.
    """
    from modules import shared

    model = None if _awaits_model() else shared.sd_model
    if model is None or not hasattr(model, "is_sd1"):
        return None
    facts = _family(model)
    family, predictor = facts.name if facts else "", _predictor(model)
    if facts is not None and facts.sampling.schedule == "flow":
        shift = float(getattr(predictor, "shift", None) or facts.sampling.flow_shift)
        return ModelFacts(family, "flow", shift, zero_terminal_snr=False)
    if predictor is not None:
        prediction = FORGE_PREDICTIONS.get(str(getattr(predictor, "prediction_type", "")), "")
    else:
        prediction = "v" if getattr(model, "parameterization", "eps") == "v" else "eps"
    zero = None if sigmas is None else float(sigmas[-1]) > ZERO_SNR_SIGMA
    flow = prediction == "flow"
    shift = float(getattr(predictor, "shift", None) or 0) or None
    return ModelFacts(
        family,
        prediction,
        shift if flow else None,
        False if flow else zero,
        # Forge's relatives scale the input themselves, by the kind that they take it for
        flow_at_will=predictor is None and not hasattr(model, "forge_objects"),
    )


def _family(model: Any) -> Family | None:
    kind = type(model).__name__
    by_class = (item for item in FAMILIES if item.hosts.webui_class == kind)
    by_flag = (item for item in FAMILIES if getattr(model, f"is_{item.name}", False))
    return next(by_class, None) or next(by_flag, None)


def _awaits_model() -> bool:
    """Whether another checkpoint is chosen than is loaded: Forge loads when it generates."""
    from modules import sd_models

    data = sd_models.model_data
    chosen = getattr(data, "forge_loading_parameters", None)
    return chosen is not None and str(chosen) != getattr(data, "forge_hash", None)


def _predictor(model: Any) -> Any:
    """Forge's description of the schedule; None elsewhere."""
    unet = getattr(getattr(model, "forge_objects", None), "unet", None)
    return getattr(getattr(unet, "model", None), "predictor", None)


def is_forge() -> bool:
    """Whether the host is Forge or a relative; those skip the negative prompt at CFG 1."""
    from modules import shared

    return hasattr(shared.sd_model, "forge_objects")


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Where, and in which type, the host's networks run."""
    from modules import devices

    return torch.device(devices.device), devices.dtype


def generating() -> contextlib.AbstractContextManager[Any]:
    """The host's lock around everything that uses its model; taken in turn."""
    from modules import call_queue

    return call_queue.queue_lock


def has_model() -> bool:
    """Whether a checkpoint is in memory; asking loads none."""
    from modules import sd_models

    return hasattr(sd_models.model_data.sd_model, "is_sd1")


def unload_model() -> None:
    """Give the graphics card's memory free; call it with the lock of `generating` held."""
    from modules import sd_models

    sd_models.unload_model_weights()


def reload_model() -> None:
    """Bring back what `unload_model` took, where the host does not do so itself."""
    from modules import sd_models, shared

    if is_forge():
        return
    back = getattr(sd_models, "load_model_to_device", None)  # reForge
    if back is not None:
        back()
    elif hasattr(sd_models, "send_model_to_device"):
        sd_models.send_model_to_device(shared.sd_model)
