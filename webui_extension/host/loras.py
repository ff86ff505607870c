"""The LoRAs that prompts call, and taking some of them off."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .models import is_forge
from .page import option_at

LORA_BESIDE = "lora_functional"


@dataclass(frozen=True)
class Lora:
    """A LoRA by the name a prompt calls it."""

    name: str
    path: Path
    strength: float = 1.0


def _networks() -> ModuleType | None:
    """The built-in extension that holds the LoRAs."""
    return sys.modules.get("networks")


def active_loras() -> list[Lora]:
    """The LoRAs of the generation that runs."""
    networks = _networks()
    found = []
    for net in getattr(networks, "loaded_networks", []):
        on_disk = getattr(net, "network_on_disk", None)
        if on_disk is not None:
            strength = float(getattr(net, "unet_multiplier", 1.0))
            found.append(Lora(str(net.name), Path(on_disk.filename), strength))
    return found


def lora_path(name: str, *, fresh: bool = False) -> Path | None:
    """The file that `<lora:name:...>` calls; None if the host knows no such LoRA.

    Args:
        fresh: look into the folder again for a name that is not known, as the host itself does.
    """
    networks = _networks()
    if networks is None:
        return None
    found = _listed_lora(networks, name)
    if found is None and (fresh or not networks.available_networks):
        networks.list_available_networks()
        found = _listed_lora(networks, name)
    return found


def _listed_lora(networks: ModuleType, name: str) -> Path | None:
    forbidden = getattr(networks, "forbidden_network_aliases", {})
    by_alias = {} if name.lower() in forbidden else networks.available_network_aliases
    on_disk = by_alias.get(name) or networks.available_networks.get(name)
    return Path(on_disk.filename) if on_disk is not None else None


def relist_loras() -> None:
    """Have the host look for LoRA files."""
    networks = _networks()
    if networks is not None:
        networks.list_available_networks()


def can_take_loras_off() -> bool:
    """Whether the host keeps LoRAs so that one can be taken off alone; early Forge forks do not."""
    from modules import shared

    objects = getattr(shared.sd_model, "forge_objects", None)
    return objects is None or hasattr(objects.unet, "lora_patches")


@contextlib.contextmanager
def loras_off(names: Collection[str]) -> Iterator[None]:
    """Take these LoRAs off the network while the block runs; the others stay on.

    Forge puts its saved weights back and merges again afterwards. A1111 would rewrite all weights
    both ways: there LoRAs are computed beside the layers (`lora_beside_layers`), these not at all.
    """
    from modules import shared

    if is_forge():
        objects = shared.sd_model.forge_objects
        paths = {str(lora.path) for lora in active_loras() if lora.name in names}
        unet, without = objects.unet, objects.unet.clone()
        kept = {key: value for key, value in unet.lora_patches.items() if key[0] not in paths}
        without.lora_patches = kept
        objects.unet = without
        try:
            without.refresh_loras()
            yield
        finally:
            objects.unet = unet
            unet.refresh_loras()
        return
    loaded = getattr(_networks(), "loaded_networks", [])
    chosen = [(n, n.unet_multiplier, n.modules) for n in loaded if str(n.name) in names]
    try:
        for net, *_ in chosen:
            net.unet_multiplier, net.modules = 0.0, {}  # not even computed
        yield
    finally:
        for net, strength, layers in chosen:
            net.unet_multiplier, net.modules = strength, layers


def lora_beside_layers() -> contextlib.AbstractContextManager[None]:
    """A1111: compute LoRAs beside the layers instead of writing them into the weights."""
    return contextlib.nullcontext() if is_forge() else option_at(LORA_BESIDE, True)
