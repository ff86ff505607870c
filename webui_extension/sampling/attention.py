"""xformers' memory-efficient attention for A1111: an entry of its list, or for one generation.

A1111's own entry needs a start with --xformers and a card of compute capability up to 9.0. This one
asks the library itself, once for a card and data type. Forge and its relatives choose when they
start and have no list: there nothing is changed, and the accordion says so.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ...core import attention as kernels
from ..host import attention_classes, models, page

HOST, XFORMERS = "the host's", "xformers"
CHOICES = (HOST, XFORMERS)


class Optimizer:
    """The entry in Settings > Optimizations, in the shape that the host asks for."""

    name = "dpdmd-xformers"
    label = "xformers memory-efficient attention, tried on this card (DP-DMD)"
    cmd_opt = None
    priority = 5  # "Automatic" keeps the host's own choice

    def title(self) -> str:
        """What the list shows."""
        return f"{self.name} - {self.label}"

    def is_available(self) -> bool:
        """Whether xformers really computes here."""
        return in_force().function is not None

    def apply(self) -> None:
        """Replace the attention of the host's networks."""
        attention_classes.replace_attention(forward)

    def undo(self) -> None:
        """Put the host's plain attention back."""
        attention_classes.replace_attention(attention_classes.plain_attention())


def register() -> None:
    """Give the host the entry, where it has a list."""
    page.on("list_optimizers", lambda listed: listed.append(Optimizer()))


def in_force() -> kernels.Backend:
    """What would compute attention on the host's device, and why."""
    return kernels.choose(*models.device_and_dtype())


def note(choice: str) -> str:
    """What to tell the user of a choice; "" where it is in force as asked."""
    if choice != XFORMERS:
        return ""
    if not attention_classes.attention_classes():
        return "This web UI chooses its attention when it starts; it was left as it is."
    found = in_force()
    return "" if found.function is not None else f"The host's attention is used: {found.reason}."


def during(choice: str) -> contextlib.AbstractContextManager[None]:
    """The chosen attention is used while the block runs."""
    if choice != XFORMERS or note(choice):
        return contextlib.nullcontext()
    return attention_classes.replaced_attention(forward)


def forward(
    self: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: object
) -> Tensor:
    """CrossAttention.forward of the host's networks, hypernetworks and upcasting included.

    Args:
        x: shape (batch, tokens, channels); context: (batch, keys, channels).
        mask: shape (batch, keys), True = attend.
    """
    given = x if context is None else context
    for_k, for_v = attention_classes.hypernetwork_contexts(given)
    q, k, v = (_split(t, self.heads) for t in (self.to_q(x), self.to_k(for_k), self.to_v(for_v)))
    dtype = q.dtype
    if page.option("upcast_attn", False):
        q, k, v = q.float(), k.float(), v.float()
    wide = None if mask is None else mask.reshape(mask.shape[0], 1, 1, -1).to(torch.bool)
    output = kernels.attention(q, k, v, mask=wide).to(dtype)
    batch, heads, tokens, width = output.shape
    return self.to_out(output.transpose(1, 2).reshape(batch, tokens, heads * width))


def _split(tensor: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads * width) as (batch, heads, tokens, width)."""
    batch, tokens, channels = tensor.shape
    return tensor.reshape(batch, tokens, heads, channels // heads).transpose(1, 2)
