"""The frozen base of a run, stored in few bits, on the CPU, or both.

The layers inside the network's blocks are stored: nearly all of the weights. The first and the
last layers, the embeddings of time, size and prompt and all norms stay as they are. Layers that a
UNet's residual path itself runs through are moved, but never packed: they are few, and rounding
them costs more than all others together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..device import dtype_name
from ..model.network import frozen_dtype
from .frozen_layers import FrozenLayer, can_be_frozen, freeze
from .offload import OffloadRing
from .weight_formats import KEEP, WeightFormat, weight_format

ON_THE_PATH = (".conv_shortcut", ".downsamplers.", ".upsamplers.")
RING = "offload_ring"


def store_base(network: nn.Module, kind: str, *, offload: bool, device: torch.device | str) -> str:
    """Move a network to `device` with its base stored as asked for; says how, in words.

    The network should lie on the CPU: each layer is packed on the device and the next follows, so
    the device never holds more than the packed base and one layer. Without adapters or with.

    Args:
        network: a denoiser, frozen.
        kind: keep, int8 or nf4.
        offload: whether what is stored stays in the CPU's memory.

    Raises:
        SettingsError: the kind does not work on this device, or needs a package that is missing.
    """
    device = torch.device(device)
    found = weight_format(kind, device, frozen_dtype(network))
    ring = _ring(network, device) if offload else None
    store_layers(network, found, ring, device)
    network.to(device)
    return describe_base(network, kind)


def quantise_base(network: nn.Module, kind: str) -> None:
    """Store the base as `kind`, in place, between passes; what is stored so already stays.

    Raises:
        SettingsError: as `store_base`.
    """
    device = _device(network)
    found = weight_format(kind, device, frozen_dtype(network))
    store_layers(network, found, getattr(network, RING, None), device)


def offload_base(network: nn.Module) -> None:
    """Move what is stored of the base into the CPU's memory, in place, between passes."""
    device = _device(network)
    ring = _ring(network, device)
    for _, layer in _inner_layers(network):
        if not isinstance(layer, FrozenLayer):
            freeze(layer, KEEP, device)
        if isinstance(layer, FrozenLayer) and layer.host is None:
            layer.to_host(ring)


def store_layers(
    network: nn.Module, found: WeightFormat, ring: OffloadRing | None, device: torch.device
) -> None:
    """Store each inner layer in the format, on the CPU where there is a ring; in place."""
    for name, layer in _inner_layers(network):
        wanted = KEEP if any(part in name for part in ON_THE_PATH) else found
        if not isinstance(layer, FrozenLayer):
            if wanted == KEEP and ring is None:
                continue
            freeze(layer, wanted, device)
        elif layer.format != wanted:
            layer.repack(wanted)
        if ring is not None and isinstance(layer, FrozenLayer) and layer.host is None:
            layer.to_host(ring)


def describe_base(network: nn.Module, kind: str) -> str:
    """What is stored where, in words."""
    layers = [layer for layer in network.modules() if isinstance(layer, FrozenLayer)]
    size = sum(layer.stored_bytes for layer in layers) / 2**20
    dtype = dtype_name(frozen_dtype(network))
    packed = sum(layer.format != KEEP for layer in layers)
    what = f"{packed} packed as {kind}" if packed else f"as {dtype}"
    text = f"{len(layers)} layers stored, {what}, {size:.1f} MiB"
    ring = getattr(network, RING, None)
    if ring is None:
        return text
    slot = ring.slots[0].numel() / 2**20
    pinned = all(layer.host is not None and layer.host.data.is_pinned() for layer in layers)
    return f"{text} in {'pinned ' if pinned else ''}CPU memory, 2 x {slot:.1f} MiB on the device"


def _inner_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers to store, in the order of the network's modules; adapters are left out.

    Those are the layers of its blocks, which a network keeps in lists.
    """
    modules = list(network.named_modules())
    lists = tuple(f"{name}." for name, module in modules if isinstance(module, nn.ModuleList))
    for name, module in modules:
        stored = isinstance(module, FrozenLayer) or can_be_frozen(module)
        if name.startswith(lists) and stored:
            yield name, module


def _ring(network: nn.Module, device: torch.device) -> OffloadRing:
    """The network's ring, made if there is none."""
    if getattr(network, RING, None) is None:
        network.register_module(RING, OffloadRing(device))
    return network.get_submodule(RING)  # type: ignore[return-value]


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
