"""Which attention kernels a network trains on: PyTorch's, or xformers' where they work."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import nn

from ..app.runs.directory import RunDirectory
from ..core.attention import SDPA as PYTORCH
from ..core.attention import choose
from ..core.errors import RunError, SettingsError
from .model.network import frozen_dtype

AUTO, SDPA, XFORMERS = "auto", "sdpa", "xformers"
CHOICES = (AUTO, SDPA, XFORMERS)
# Where "auto" tries xformers (ROCm calls itself CUDA); elsewhere it has no kernels of its own.
AUTO_DEVICES = ("cuda",)
JOINT = (JointAttnProcessor2_0, XFormersJointAttnProcessor)
PLAIN = (AttnProcessor2_0, XFormersAttnProcessor, *JOINT)
NOTES = "attention.json"


def use_attention(network: nn.Module, choice: str = AUTO, noted: Collection[str] = ()) -> str:
    """Set the kernels of every attention layer; returns which are in force and why.

    xformers is taken if it passes its trial, gradients included, at every head width of the
    network; else PyTorch's own stay, and the text says what was wrong.

    Args:
        choice: "auto" tries xformers on CUDA alone.
        noted: of `noted_kernels`: what the run has begun with; "auto" keeps it where it can.

    Raises:
        SettingsError: there is no such choice.
    """
    if choice not in CHOICES:
        raise SettingsError(f"attention is {choice!r}; choose {', '.join(CHOICES)}.")
    layers = [
        module
        for module in network.modules()
        if isinstance(module, Attention) and isinstance(module.processor, PLAIN)
    ]
    _set_processors(layers, JointAttnProcessor2_0, AttnProcessor2_0)
    if choice == SDPA or not layers:
        return f"{PYTORCH} (as chosen)"
    if choice == XFORMERS:
        return _xformers(network, layers)
    if set(noted) == {SDPA}:
        return f"{PYTORCH} (as this run began)"
    if set(noted) == {XFORMERS}:
        return _xformers(network, layers)
    device = next(network.parameters()).device
    found = f"{PYTORCH} (auto tries xformers on CUDA alone)"
    if device.type in AUTO_DEVICES:
        found = _xformers(network, layers)
    if noted:
        found += (
            f". This run began with {' and '.join(sorted(noted))} as an earlier version timed "
            "them; kernels are no longer timed, and the rest of the run is the same up to rounding"
        )
    return found


def _xformers(network: nn.Module, layers: list[Attention]) -> str:
    """Set xformers' kernels if they can train every layer; which are in force, and why."""
    device, dtype = next(network.parameters()).device, frozen_dtype(network)
    widths = sorted({layer.inner_dim // layer.heads for layer in layers})
    for width in widths:
        backend = choose(device, dtype, width)
        if backend.function is None:
            return str(backend)
        if not backend.differentiable:
            return f"{PYTORCH} (xformers has no gradients here)"
    _set_processors(layers, XFormersJointAttnProcessor, XFormersAttnProcessor)
    return str(choose(device, dtype, widths[0]))


def _set_processors(
    layers: list[Attention], joint: Callable[[], Any], plain: Callable[[], Any]
) -> None:
    """Give each layer a processor of its kind."""
    for layer in layers:
        layer.set_processor(joint() if isinstance(layer.processor, JOINT) else plain())


def noted_kernels(run: RunDirectory) -> set[str]:
    """The kernels that an earlier version timed and noted in a run's folder; else an empty set."""
    try:
        layers = run.read_json(NOTES).get("layers")
    except RunError:
        return set()
    return {str(name) for name in layers.values()} if isinstance(layers, dict) else set()
