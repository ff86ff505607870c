"""What a MODEL is: its family and schedule, what is attached to it, its attention, its device."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import CheckpointError, SettingsError
from ...core.families import FAMILIES
from ...core.files.tensor_file import read_header
from ...core.recipe.resolve import ModelFacts

Model = Any
"""A ComfyUI ModelPatcher."""
RECIPE_ATTACHMENT = "dpdmd_recipe"
"""Recipe text on a MODEL; unlike `lora_metadata` it survives LoRAs that are loaded later."""


def model_facts(model: Model) -> ModelFacts:
    """Family, prediction and schedule of a MODEL; SettingsError if it is no ordinary one."""
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(model, "get_model_object"):
        raise SettingsError(
            f"This MODEL ({type(model).__name__}) comes from a loader that does not give ComfyUI's "
            "own kind of model. Load the checkpoint with Load Checkpoint."
        )
    sampling = model.get_model_object("model_sampling")
    prediction = _prediction(sampling)
    has_shift = prediction == "flow" and hasattr(sampling, "shift")
    return ModelFacts(
        family=_family(inner),
        prediction=prediction,
        shift=float(sampling.shift) if has_shift else None,
        zero_terminal_snr=bool(getattr(sampling, "zsnr", False)),
        name=type(inner).__name__,
    )


PREDICTIONS = (("EPS", "eps"), ("V_PREDICTION", "v"), ("CONST", "flow"), ("X0", "x0"))
OTHER_SAMPLING = {"EDM", "LCM", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "ModelSamplingContinuousEDM"}
"""Classes derived from those above that mean something else."""


def _prediction(sampling: Any) -> str:
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    if kinds & OTHER_SAMPLING:
        return ""
    return next((name for kind, name in reversed(PREDICTIONS) if kind in kinds), "")


def _family(inner: Any) -> str:
    network = getattr(getattr(inner, "model_config", None), "unet_config", {}) or {}
    for item in FAMILIES:
        facts = item.hosts
        if facts.comfyui_class == type(inner).__name__ and all(
            network.get(name) == value for name, value in facts.comfyui_network.items()
        ):
            return item.name
    return ""


def checkpoint_of(model: Model) -> Path | None:
    """The file that a MODEL was loaded from, where the host remembers it."""
    made_by = getattr(model, "cached_patcher_init", None)
    first = made_by[1][0] if made_by and len(made_by) > 1 and made_by[1] else None
    return Path(first) if isinstance(first, str) and Path(first).is_file() else None


def saved_graph(model: Model) -> dict[str, Any]:
    """The graph that the MODEL's checkpoint was saved by in ComfyUI; empty where it does not say.

    Core's nodes that save a checkpoint write it into the file; they take nothing else of ours on.
    """
    path = checkpoint_of(model)
    if path is None or path.suffix.lower() != ".safetensors":
        return {}
    try:
        found = json.loads(read_header(path).metadata.get("prompt", "{}"))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_patched(model: Model) -> bool:
    """Whether LoRAs or the like lie on a MODEL, in its weights or beside its layers."""
    kinds = ("patches", "injections", "hook_patches")
    return any(getattr(model, kind, None) for kind in kinds)


def evaluates_negative(model: Model) -> bool:
    """Whether a patch on a MODEL has the negative prompt evaluated at CFG 1, too."""
    return bool(getattr(model, "model_options", {}).get("disable_cfg1_optimization", False))


def changed_objects(model: Model) -> list[str]:
    """Names of parts that somebody replaced on a MODEL, such as its sampling."""
    return sorted(getattr(model, "object_patches", {}) or {})


def with_attention(model: Model, function: Callable[..., Tensor]) -> Model:
    """A clone of the MODEL whose attention is `function(original, q, k, v, heads, ...)`."""
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    patched.model_options["transformer_options"] = {
        **options, "optimized_attention_override": function,
    }  # fmt: skip
    return patched


def attention_in_force() -> str:
    """The attention that this ComfyUI was started with, in its own word."""
    import comfy.ldm.modules.attention as attention

    return getattr(attention.optimized_attention, "__name__", "unknown").removeprefix("attention_")


def with_flow(model: Model, shift: float) -> Model:
    """A clone of the MODEL that is sampled as a flow, as core's ModelSamplingSD3 makes one."""
    import comfy.model_sampling as sampling

    flow = type("FlowSampling", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})
    made = flow(model.model.model_config)
    made.set_parameters(shift=shift, multiplier=1000)
    patched = model.clone()
    patched.add_object_patch("model_sampling", made)
    return patched


def load_device(model: Model) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that a MODEL's network runs with."""
    inner = model.model
    dtype = getattr(inner, "manual_cast_dtype", None) or inner.get_dtype()
    return torch.device(model.load_device), dtype
