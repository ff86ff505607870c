"""The classes of A1111's networks that attend."""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def attention_classes() -> list[type]:
    """The classes of A1111's networks that attend; none in hosts that choose at their start."""
    if "modules.sd_hijack" not in sys.modules:
        return []
    loaded = [sys.modules.get(f"{name}.modules.attention") for name in ("ldm", "sgm")]
    found = [getattr(module, "CrossAttention", None) for module in loaded]
    return [kind for kind in found if kind is not None]


def replace_attention(forward: Callable[..., Tensor]) -> None:
    """Give the networks' classes another forward."""
    for kind in attention_classes():
        kind.forward = forward  # type: ignore[attr-defined]


@contextlib.contextmanager
def replaced_attention(forward: Callable[..., Tensor]) -> Iterator[None]:
    """Give the networks' classes another forward while the block runs."""
    before: list[tuple[Any, Any]] = [(k, k.__dict__["forward"]) for k in attention_classes()]
    replace_attention(forward)
    try:
        yield
    finally:
        for kind, own in before:
            kind.forward = own


def plain_attention() -> Callable[..., Tensor]:
    """The forward of the host's plain attention."""
    from modules.hypernetworks import hypernetwork

    return hypernetwork.attention_CrossAttention_forward


def hypernetwork_contexts(context: Tensor) -> tuple[Tensor, Tensor]:
    """The context for keys and for values, as the loaded hypernetworks change it."""
    from modules import shared
    from modules.hypernetworks import hypernetwork

    return hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, context)
