"""The LoRAs that prompts call, and taking some of them off."""

# pyright: reportMissingImports=false

from __future__ import annotations

import ast
import contextlib
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from .models import has_model, is_forge
from .page import option_at

LORA_BESIDE = "lora_functional"
SAMPLING = ("backend.sampling.sampling_function", "modules_forge.forge_sampler")
"""Where Forge Neo and reForge keep `sampling_prepare`, which puts a patcher's weights in place."""


@dataclass(frozen=True)
class Lora:
    """A LoRA by the name a prompt calls it.

    Attributes:
        autov3: first twelve digits of the SHA256 of its tensors, "" where the host does not know.
    """

    name: str
    path: Path
    strength: float = 1.0
    autov3: str = ""


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


def listed(name: str, *, fresh: bool = False) -> Lora | None:
    """The LoRA that `<lora:name:...>` calls; None if the host knows no such LoRA.

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


def _listed_lora(networks: ModuleType, name: str) -> Lora | None:
    forbidden = getattr(networks, "forbidden_network_aliases", {})
    by_alias = {} if name.lower() in forbidden else networks.available_network_aliases
    on_disk = by_alias.get(name) or networks.available_networks.get(name)
    if on_disk is None:
        return None
    return Lora(name, Path(on_disk.filename), autov3=str(getattr(on_disk, "shorthash", "") or ""))


def relist_loras() -> None:
    """Have the host look for LoRA files."""
    networks = _networks()
    if networks is not None:
        networks.list_available_networks()


def can_take_loras_off() -> bool:
    """Whether a LoRA can be taken off alone; True while no checkpoint is loaded to ask."""
    from modules import shared

    if not has_model() or not is_forge():
        return True
    unet = shared.sd_model.forge_objects.unet
    if hasattr(unet, "lora_patches"):
        return True
    known = all(hasattr(unet, name) for name in ("clone", "patches", "patches_uuid"))
    noted = hasattr(shared.sd_model, "current_lora_hash")
    return known and noted and _prepare() is not None and hasattr(_networks(), "load_networks")


def loras_off(names: Collection[str], x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Take these LoRAs off the network while the block runs; the others stay on.

    Forge, reForge and Neo put their saved weights back and merge again afterwards. A1111 would
    rewrite all weights both ways: there LoRAs are computed beside the layers
    (`lora_beside_layers`), these not at all.

    Args:
        x: the latents being sampled, by whose size the host makes room on the card.
    """
    from modules import shared

    if not is_forge():
        return _not_computed(names)
    if hasattr(shared.sd_model.forge_objects.unet, "lora_patches"):
        return _unmerged_by_file(names)
    return _unmerged(names, x)


@contextlib.contextmanager
def _unmerged_by_file(names: Collection[str]) -> Iterator[None]:
    """Forge: its patcher knows LoRAs by their files."""
    from modules import shared

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


@contextlib.contextmanager
def _unmerged(names: Collection[str], x: Tensor) -> Iterator[None]:
    """reForge and Neo: their patcher has one list of patches a weight, as ComfyUI's.

    The weights follow a patcher when it is prepared for sampling, by the mark of its patches.
    """
    from modules import shared

    prepare, objects = _prepare(), shared.sd_model.forge_objects
    assert prepare is not None, "asked before by can_take_loras_off"
    unet, without = objects.unet, objects.unet.clone()
    without.patches, without.patches_uuid = _patches_without(names), uuid.uuid4()
    objects.unet = without
    try:
        prepare(without, x)
        yield
        objects.unet = unet
        prepare(unet, x)
    finally:  # after an error the next generation prepares it
        objects.unet = unet


def _patches_without(names: Collection[str]) -> dict[str, list[Any]]:
    """The patches of the network in use but for these LoRAs', by the host's own loading.

    What other extensions patched after the LoRAs stays.
    """
    from modules import shared

    networks, model = _networks(), shared.sd_model
    assert networks is not None, "there are LoRAs"
    objects, before = model.forge_objects, model.current_lora_hash
    used, clip, all_on = objects.unet, objects.clip, model.forge_objects_after_applying_lora
    loaded = list(networks.loaded_networks)
    # the host notes what it has merged as the text of a list: [file, denoiser's, encoder's, ...]
    noted = {str(row[0]): (row[1], row[2]) for row in ast.literal_eval(str(before) or "[]")}
    kept = [net for net in loaded if str(net.name) not in names]
    strengths = [noted.get(str(net.network_on_disk.filename), (1.0, 1.0)) for net in kept]
    try:
        networks.load_networks(
            [str(net.name) for net in kept], [te for _, te in strengths], [u for u, _ in strengths]
        )
        fewer = {key: list(patches) for key, patches in objects.unet.patches.items()}
    finally:
        networks.loaded_networks[:] = loaded
        objects.unet, objects.clip = used, clip
        model.forge_objects_after_applying_lora, model.current_lora_hash = all_on, before
    of_loras = {id(patch) for patches in all_on.unet.patches.values() for patch in patches}
    for key, patches in used.patches.items():
        there = fewer.setdefault(key, [])
        here = of_loras.union(map(id, there))
        there += [patch for patch in patches if id(patch) not in here]
    return {key: patches for key, patches in fewer.items() if patches}


def _prepare() -> Callable[[Any, Tensor], None] | None:
    """The host's function that puts a patcher's weights where they are sampled."""
    found = (getattr(sys.modules.get(name), "sampling_prepare", None) for name in SAMPLING)
    return next((function for function in found if function is not None), None)


@contextlib.contextmanager
def _not_computed(names: Collection[str]) -> Iterator[None]:
    """A1111: the LoRAs stand beside the layers; these are left out."""
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
