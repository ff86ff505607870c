"""Which attention kernels a diffusers network runs on."""

from __future__ import annotations

from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import nn

from ...core.attention import SDPA, Backend, choose
from ...core.errors import SettingsError
from .network import network_dtype

CHOICES = ("auto", "sdpa", "xformers")


def use_attention(network: nn.Module, choice: str = "auto") -> str:
    """Set the kernels of every attention layer; returns which are used and why.

    "auto" and "xformers" take xformers if it passes its trial, gradients included, at every head
    width of the network; else PyTorch's own stay, and the text says what was wrong.
    """
    if choice not in CHOICES:
        raise SettingsError(f"attention is {choice!r}; choose {', '.join(CHOICES)}.")
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    if choice == "sdpa" or not layers:
        _set_processors(layers, xformers=False)
        return f"{SDPA} (as chosen)"
    device = next(network.parameters()).device
    widths = sorted({layer.inner_dim // layer.heads for layer in layers})
    found = [choose(device, network_dtype(network), width) for width in widths]
    lacking = [backend for backend in found if not (backend.function and backend.differentiable)]
    _set_processors(layers, xformers=not lacking)
    return _describe(lacking, found)


def _describe(lacking: list[Backend], found: list[Backend]) -> str:
    if not lacking:
        return str(found[0])
    if lacking[0].function is not None:
        return f"{SDPA} (xformers has no gradients here)"
    return str(lacking[0])


def _set_processors(layers: list[Attention], *, xformers: bool) -> None:
    """Swap the plain processors of either kind for the other's; special ones are left alone."""
    unet = XFormersAttnProcessor if xformers else AttnProcessor2_0
    joint = XFormersJointAttnProcessor if xformers else JointAttnProcessor2_0
    for layer in layers:
        if isinstance(layer.processor, AttnProcessor2_0 | XFormersAttnProcessor):
            layer.set_processor(unet())  # type: ignore[arg-type]
        elif isinstance(layer.processor, JointAttnProcessor2_0 | XFormersJointAttnProcessor):
            layer.set_processor(joint())  # type: ignore[arg-type]
