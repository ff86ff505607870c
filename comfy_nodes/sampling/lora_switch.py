"""Switching a few-step LoRA on and off on one loaded model, without patching its weights again.

ComfyUI adds a LoRA to the weights: going from the base MODEL to the few-step one rewrites every
weight the LoRA touches, twice an image. A plain low-rank update can instead be added to the output
of its layer, W x + s B A x, which is the host's "bypass" form; entering and leaving it costs
nothing but the moves of the low-rank factors.

MODELs are used by their attributes alone, so nothing here imports ComfyUI.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Patch = Sequence[Any]  # (strength, what is added, strength of the weight, part of the weight, map)
Patches = Mapping[str, Sequence[Patch]]


def patch_difference(base: Patches, other: Patches) -> tuple[dict[str, list[Patch]], int]:
    """(patches that only `other` has, in their order by weight, number of those only `base` has).

    One patch is the same as another if its tensors are.
    """
    added: dict[str, list[Patch]] = {}
    removed = 0
    for name in {**base, **other}:
        rest = list(base.get(name, ()))
        for patch in other.get(name, ()):
            same = next((i for i, known in enumerate(rest) if _same(known, patch)), None)
            if same is None:
                added.setdefault(name, []).append(patch)
            else:
                rest.pop(same)
        removed += len(rest)
    return added, removed


def _same(one: Patch, other: Patch) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return a is b or (isinstance(a, (int, float, tuple)) and type(a) is type(b) and a == b)

    return one[1] is other[1] and all(map(equal, one, other))


def why_not_hooks(base: Any, few_step: Any, hook_type: type | None) -> str:
    """Why the few-step MODEL cannot be the base with hooks; "" where it can.

    Args:
        base: the MODEL without the few-step LoRA.
        few_step: the MODEL with it.
        hook_type: the host's layer hook, None where the host has none.
    """
    if few_step.model is not base.model:
        return "the two MODELs are different checkpoints"
    if hook_type is None:
        return "this ComfyUI has no bypass form of LoRAs"
    added, removed = patch_difference(base.patches, few_step.patches)
    if removed:
        return "the base MODEL has LoRAs that the few-step MODEL has not"
    patches = [(name, patch) for name, many in added.items() for patch in many]
    others = [(name, patch) for name, many in base.patches.items() for patch in many]
    if not all(_is_low_rank(few_step, *each) for each in patches):
        return "the few-step LoRA holds more than plain low-rank updates of layers"
    affected = [patch for name, patch in others if name in added]
    if not all(_is_linear(patch) for patch in affected):
        return "a style LoRA rescales weights of the same layers (DoRA or the like)"
    return ""


def _is_linear(patch: Patch) -> bool:
    """Whether the patch adds the same amount whatever the weight is, at the weight's strength 1."""
    weights = getattr(patch[1], "weights", None)
    if getattr(patch[1], "name", "") != "lora" or not isinstance(weights, (tuple, list)):
        return False
    return len(weights) == 6 and weights[4] is None and patch[2] == 1.0


def _is_low_rank(model: Any, name: str, patch: Patch) -> bool:
    """Whether the patch is B A on a whole linear or convolution layer, as a hook can add it."""
    if not _is_linear(patch) or patch[3] is not None or patch[4] is not None:
        return False
    middle, reshape = patch[1].weights[3], patch[1].weights[5]
    layer = _layer(model.model, name)
    plain = layer is not None and getattr(layer, "weight", None) is not None
    return plain and middle is None and reshape is None and hasattr(patch[1], "h")


def _layer(root: Any, name: str) -> Any:
    path, _, kind = name.rpartition(".")
    if kind != "weight":
        return None
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def without_patches(base: Any, few_step: Any) -> Any:
    """The few-step MODEL with the base's weights: loading one after the other patches nothing."""
    student = few_step.clone()
    student.patches = {name: list(patches) for name, patches in base.patches.items()}
    student.patches_uuid = base.patches_uuid
    return student


@contextmanager
def hooked(base: Any, few_step: Any, hook_type: Callable[..., Any]) -> Iterator[int]:
    """Inside, the layers of the loaded model also add the few-step LoRA; yields their number.

    Whatever ends the block, the host's interruption included, the layers are as before after it.
    """
    added, _ = patch_difference(base.patches, few_step.patches)
    layers = {name: _layer(few_step.model, name) for name in added}
    untouched = [layer for layer in layers.values() if "forward" not in vars(layer)]
    hooks = [
        # a copy: the hook moves the factors to the device and keeps its strength in them
        hook_type(layers[name], copy.copy(patch[1]), multiplier=patch[0])
        for name, patches in added.items()
        for patch in patches
    ]
    try:
        for hook in hooks:
            hook.inject()
        yield len(hooks)
    finally:
        for hook in reversed(hooks):
            hook.eject()
        for layer in untouched:
            vars(layer).pop("forward", None)
