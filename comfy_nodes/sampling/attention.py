"""The node that gives one MODEL xformers' memory-efficient attention, or PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import attention as kernels
from ..host import models, running
from ..host.inputs import node_input

BACKENDS = ("auto", "xformers", "pytorch")
Original = Callable[..., Tensor]


class Attention:
    """DP-DMD Attention."""

    DISPLAY_NAME = "DP-DMD Attention"
    CATEGORY = "DP-DMD/sampling"
    DESCRIPTION = (
        "Memory-efficient attention for this model alone: xformers where it works on this card, or "
        "PyTorch's. Says what is in use; VAE and text encoders are left as they are."
    )
    SEARCH_ALIASES = ("xformers", "memory efficient attention", "sdpa", "attention backend")
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "in_force")
    OUTPUT_TOOLTIPS = ("The model with that attention.", "What is in use, and why.")
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        backend = "auto: xformers if it works here, else ComfyUI's own choice."
        return {
            "required": {
                "model": node_input("MODEL", "Any model."),
                "backend": node_input(BACKENDS, backend, default="auto"),
            }
        }

    def patch(self, model: models.Model, backend: str) -> dict[str, Any]:
        """A clone of the model with that attention, or the model itself and the reason."""
        if backend == "pytorch":
            model = models.with_attention(model, pytorch_override)
            text = "PyTorch's scaled_dot_product_attention, on this model."
        elif (found := kernels.choose(*models.load_device(model))).function is None:
            own = models.attention_in_force()
            text = f"Nothing was changed: {found.reason}. ComfyUI uses {own}."
        else:
            model = models.with_attention(model, xformers_override)
            text = f"xformers: {found.reason}."
        return running.outcome(text, (model, text))


def _override(compute: Callable[..., Tensor]) -> Original:
    """ComfyUI's attention call by `compute(q, k, v, mask, scale)`; the original takes the rest."""

    def override(
        original: Original,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        *positional: object,
        **options: Any,
    ) -> Tensor:
        """q: (batch, tokens, heads * width), or (batch, heads, tokens, width) with skip_reshape."""
        if positional or not _known(options) or len(q) > LARGEST_BATCH:
            return original(q, k, v, heads, mask, *positional, **options)
        split = (q, k, v) if options.get("skip_reshape") else _split(q, k, v, heads=heads)
        fitting = None if mask is None else _fitting_mask(mask, split[0], split[1])
        if mask is not None and fitting is None:
            return original(q, k, v, heads, mask, **options)
        output = compute(*split, fitting, options.get("scale"))
        return output if options.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)

    return override


xformers_override = _override(kernels.attention)
pytorch_override = _override(kernels.by_pytorch)

LARGEST_BATCH = 2**15
"""Kernels of both kinds fail on larger ones on NVIDIA cards; ComfyUI's own code splits them."""
KNOWN_OPTIONS = {
    "attn_precision",
    "skip_reshape",
    "skip_output_reshape",
    "scale",
    "enable_gqa",
    "transformer_options",
    "_inside_attn_wrapper",
}


def _known(options: dict[str, Any]) -> bool:
    """Whether every option is one that is handled here, and no other precision is asked."""
    asked = options.get("attn_precision")
    handled = set(options) <= KNOWN_OPTIONS and not options.get("enable_gqa")
    return handled and asked in (None, torch.float16, torch.bfloat16)


def _split(*tensors: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Each of shape (batch, tokens, heads * width) as (batch, heads, tokens, width)."""
    return tuple(tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in tensors)


def _fitting_mask(mask: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask broadcastable to (batch, heads, tokens, keys), None where that is not clear.

    ComfyUI hands masks as (tokens, keys), (batch, tokens, keys) or (batch, heads, tokens, keys).
    """
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    if mask.ndim not in (2, 4):
        return None
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    padded = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    fits = all(have in (1, want) for have, want in zip(padded, shape, strict=True))
    return mask.reshape(padded) if fits else None


NODES = (Attention,)
