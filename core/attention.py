"""Scaled dot-product attention by kernels that really work here, saying which and why.

xformers can be importable and yet have no kernel for a device, dtype or head width. So it is tried
once for each on a tiny input, forward and backward, and compared with PyTorch, before it is used.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

logger = logging.getLogger("dpdmd_studio.attention")

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
FALLBACK_ERRORS = (NotImplementedError, RuntimeError, ValueError, TypeError)
USUAL_WIDTH = 64
SDPA = "PyTorch SDPA"

# as `attention`: (q, k, v, mask, scale) -> output
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]


@dataclass(frozen=True)
class Backend:
    """Kernels in use: name, reason, xformers as a `Kernel` if in use, whether it has gradients."""

    name: str
    reason: str
    function: Kernel | None = None
    differentiable: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


_backends: dict[tuple[str, torch.dtype, int], Backend] = {}
_declined: set[tuple[object, ...]] = set()


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + mask) v, shape (batch, heads, tokens, width).

    Args:
        q: shape (batch, heads, tokens, width); k and v: (batch, heads, keys, width).
        mask: added to the scores, or boolean (True = attend), broadcastable to
            (batch, heads, tokens, keys).
        scale: default 1 / sqrt(width).
    """
    if _xformers_may(q, k, v, mask):
        kernel = choose(q.device, q.dtype, q.shape[-1]).function
        call = (q.device.type, q.dtype, q.shape[-1], mask is None)
        if kernel is not None and call not in _declined:
            try:
                return kernel(q, k, v, mask, scale)
            except torch.cuda.OutOfMemoryError:
                raise
            except FALLBACK_ERRORS as error:
                _declined.add(call)
                logger.info("xformers declines %s (%s); PyTorch takes it", call, _short(error))
    return by_pytorch(q, k, v, mask, scale)


def choose(device: torch.device, dtype: torch.dtype, width: int = USUAL_WIDTH) -> Backend:
    """The backend for a device, dtype and head width, probed once."""
    key = (str(device), dtype, width)
    if key not in _backends:
        _backends[key] = _probe(device, dtype, width)
        logger.info("attention on %s, %s, width %d: %s", *key, _backends[key])
    return _backends[key]


def _probe(device: torch.device, dtype: torch.dtype, width: int) -> Backend:
    try:
        kernel = _by_xformers(importlib.import_module("xformers.ops").memory_efficient_attention)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return Backend(SDPA, f"xformers is not usable: {_short(error)}")
    if dtype not in TOLERANCE:
        return Backend(SDPA, f"xformers is not tried for {dtype}")
    try:
        output = _trial(kernel, device, dtype, width, gradients=False)
    except FALLBACK_ERRORS as error:
        return Backend(SDPA, f"xformers has no kernel here: {_short(error)}")
    if not output <= TOLERANCE[dtype]:  # also where it is NaN
        return Backend(SDPA, f"xformers is wrong here by {output:.2g}")
    try:
        gradient = _trial(kernel, device, dtype, width, gradients=True)
        differentiable = gradient <= TOLERANCE[dtype]
    except FALLBACK_ERRORS:
        differentiable = False
    reason = "tried and equal to PyTorch" + ("" if differentiable else ", without gradients")
    return Backend("xformers", reason, kernel, differentiable)


def _trial(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int, *, gradients: bool
) -> float:
    """Largest difference between a kernel and PyTorch, of the output or of the gradient by q."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        shape = (3, 1, 2, 40, width)
        q, k, v = torch.randn(shape, generator=generator).to(device, dtype).unbind()
        results = []
        for run in (kernel, by_pytorch):
            leaf = q.clone().requires_grad_(gradients)
            result = run(leaf, k, v, None, None)
            if gradients:
                (result,) = torch.autograd.grad(result.square().sum(), leaf)
            results.append(result.float())
    return float((results[0] - results[1]).abs().max())


def by_pytorch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The same as `attention`, always by PyTorch's own kernels."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _xformers_may(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether these are inputs that xformers may be asked about at all."""
    if q.ndim != 4 or q.shape[:2] != k.shape[:2] or not q.dtype == k.dtype == v.dtype:
        return False
    if mask is not None and mask.requires_grad:
        return False
    needs_gradient = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    return not needs_gradient or choose(q.device, q.dtype, q.shape[-1]).differentiable


def _by_xformers(function: Callable[..., Tensor]) -> Kernel:
    """xformers' function with heads before tokens; it takes masks as an aligned additive bias."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        bias = None if mask is None else _additive(mask, q, k)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return function(q, k, v, attn_bias=bias, p=0.0, scale=scale).transpose(1, 2)

    return kernel


def _additive(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The mask as a bias of shape (batch, heads, tokens, keys), its rows aligned to 8 elements."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    batch, heads, tokens, keys = *q.shape[:3], k.shape[2]
    padded = q.new_zeros(batch, heads, tokens, -(-keys // 8) * 8)
    padded[..., :keys] = mask.to(q.dtype)
    return padded[..., :keys]


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
