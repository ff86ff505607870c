"""The classes of A1111's networks that attend, and its list of optimizers."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor


def _attention_classes() -> list[type]:
    """The classes of A1111's networks that attend; none in hosts that choose at their start."""
    places = ("ldm.modules.attention", "sgm.modules.attention")
    loaded = [sys.modules.get(name) for name in places]
    if "modules.sd_hijack" not in sys.modules:
        return []
    found = [getattr(module, "CrossAttention", None) for module in loaded]
    return [kind for kind in found if kind is not None]


def has_attention_classes() -> bool:
    """Whether attention can be replaced here."""
    return bool(_attention_classes())


def replace_attention(forward: Callable[..., Tensor]) -> list[tuple[type, Any]]:
    """Give the networks' classes another forward; what they had."""
    before = [(kind, kind.__dict__["forward"]) for kind in _attention_classes()]
    for kind, _ in before:
        kind.forward = forward  # type: ignore[attr-defined]
    return before


def restore_attention(before: list[tuple[type, Any]] | None = None) -> None:
    """Put back what `replace_attention` returned, or without it the host's plain attention."""
    if before is None:
        from modules.hypernetworks import hypernetwork

        plain = hypernetwork.attention_CrossAttention_forward
        before = [(kind, plain) for kind in _attention_classes()]
    for kind, forward in before:
        kind.forward = forward  # type: ignore[attr-defined]


def hypernetwork_contexts(context: Tensor) -> tuple[Tensor, Tensor]:
    """The context for keys and for values, as the loaded hypernetworks change it."""
    from modules import shared
    from modules.hypernetworks import hypernetwork

    return hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, context)


def add_optimizer(optimizer: Any) -> None:
    """Put an entry into the list of attention optimizers, where the host has one and calls it."""
    from modules import script_callbacks

    if hasattr(script_callbacks, "on_list_optimizers"):
        script_callbacks.on_list_optimizers(lambda listed: listed.append(optimizer))
