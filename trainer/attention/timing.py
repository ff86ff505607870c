"""Attention kernels tried and timed, forward and backward, on a network's own shapes.

What is timed is the processor that the network would run, on a layer whose projections are left
out, so that reshaping counts and matrix products do not.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.attention import FALLBACK_ERRORS, TOLERANCE, choose
from .shapes import AttentionShape

SDPA, XFORMERS = "sdpa", "xformers"
# PyTorch's kernels in another order than its own; those behind the first serve what it refuses.
FIRST = {
    "sdpa, flash first": SDPBackend.FLASH_ATTENTION,
    "sdpa, efficient first": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa, cudnn first": SDPBackend.CUDNN_ATTENTION,
}
ROUNDS, CALLS = 7, 3


class _OrderedUNet(AttnProcessor2_0):
    """PyTorch's attention with one of its kernels asked first."""

    def __init__(self, first: SDPBackend) -> None:
        super().__init__()
        self.order = [first, *(b for b in (*FIRST.values(), SDPBackend.MATH) if b != first)]

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        with sdpa_kernel(self.order, set_priority=True):
            return super().__call__(*arguments, **named)


class _OrderedJoint(JointAttnProcessor2_0):
    """The same for layers that take picture and text in one."""

    def __init__(self, first: SDPBackend) -> None:
        super().__init__()
        self.order = [first, *(b for b in (*FIRST.values(), SDPBackend.MATH) if b != first)]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with sdpa_kernel(self.order, set_priority=True):
            return super().__call__(*arguments, **named)


@dataclass(frozen=True)
class Candidate:
    """A way to compute attention: what makes a layer's processor, of either kind."""

    unet: Callable[[], Any]
    joint: Callable[[], Any]


def candidates(device: torch.device) -> dict[str, Candidate]:
    """The ways that may work on a device, by name; PyTorch's own choice comes first.

    Off CUDA and ROCm PyTorch has one fused kernel and xformers none, unless it says otherwise.
    """
    found = {
        SDPA: Candidate(AttnProcessor2_0, JointAttnProcessor2_0),
        XFORMERS: Candidate(XFormersAttnProcessor, XFormersJointAttnProcessor),
    }
    ordered = "set_priority" in inspect.signature(sdpa_kernel).parameters
    if device.type == "cuda" and ordered:
        for name, first in FIRST.items():
            found[name] = Candidate(
                lambda first=first: _OrderedUNet(first), lambda first=first: _OrderedJoint(first)
            )
    return found


def unusable(name: str, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why a candidate need not be timed here; empty if it is worth timing."""
    if name != XFORMERS:
        return ""
    backend = choose(device, dtype, width)
    if backend.function is None:
        return backend.reason
    return "" if backend.differentiable else "xformers has no gradients here"


class _Given(nn.Module):
    """A projection whose result is given."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if self.value is None else self.value


class Trial:
    """One shape's tensors, and the calls of candidates on them."""

    def __init__(self, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        inner = shape.heads * shape.width
        sizes = (shape.tokens, shape.keys, shape.keys, shape.tokens)
        drawn = [torch.randn(shape.batch, n, inner, generator=generator) for n in sizes]
        q, k, v, self._gradient = (value.to(device, dtype) for value in drawn)
        self._leaves = [value.requires_grad_() for value in (q, k, v)]
        layer = Attention(query_dim=inner, heads=shape.heads, dim_head=shape.width)
        for name, value in zip(("to_q", "to_k", "to_v"), self._leaves, strict=True):
            layer.register_module(name, _Given(value))
        layer.to_out = nn.ModuleList([_Given(None), _Given(None)])
        self._layer, self._joint = layer, shape.joint
        self._text = k.detach() if shape.keys != shape.tokens else None

    def call(self, candidate: Candidate) -> list[Tensor]:
        """The output and the gradients by queries, keys and values."""
        processor = candidate.joint() if self._joint else candidate.unet()
        with torch.inference_mode(False), torch.enable_grad():
            more = {} if self._text is None else {"encoder_hidden_states": self._text}
            output = processor(self._layer, self._leaves[0].detach(), **more)
            gradients = torch.autograd.grad(output, self._leaves, self._gradient)
            return [output.detach(), *gradients]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest distance of a tensor from the expected one, relative to that one's norm."""
    distances = [
        float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-12))
        for a, b in zip(found, expected, strict=True)
    ]
    return max(distances, key=lambda value: (value != value, value))  # NaN is the largest


def time_calls(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the mean of a few that the device has finished."""
    synchronize = getattr(getattr(torch, device.type, None), "synchronize", lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    synchronize()
    return (time.perf_counter() - started) / CALLS


def measure(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    offered: Mapping[str, Candidate],
) -> dict[str, float]:
    """Median seconds of forward and backward, by candidate; those that fail or err are left out.

    Candidates take turns, so that a device that grows warm or busy treats them alike.
    """
    trial, usable = Trial(shape, device, dtype), {}
    expected = trial.call(offered[SDPA])
    for name, candidate in offered.items():
        try:
            apart = difference(trial.call(candidate), expected)
        except (*FALLBACK_ERRORS, torch.OutOfMemoryError):
            continue
        if apart <= TOLERANCE.get(dtype, 0.0):  # not where it is NaN
            usable[name] = candidate
    usable.setdefault(SDPA, offered[SDPA])
    if len(usable) == 1:
        return {SDPA: 0.0}
    times: dict[str, list[float]] = {name: [] for name in usable}
    for _ in range(ROUNDS):
        for name, candidate in usable.items():
            times[name].append(time_calls(lambda c=candidate: trial.call(c), device))
    return {name: statistics.median(values) for name, values in times.items()}
