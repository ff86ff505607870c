"""torch.compile, block by block, and what it counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

KINDS = ("BasicTransformerBlock", "JointTransformerBlock")
# Blocks share their class's code, whose graphs are kept in one list: a graph for each shape, role
# and use (with gradient or without).
GRAPHS = 256


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile each transformer block in place; returns how many.

    The first call of a block as a role, with and without gradient, compiles. A graph holds for one
    role: dynamo guards which adapter was active. A block that gives no whole graph raises, and so
    does a graph past `GRAPHS`: nothing goes on uncompiled.
    """
    config: Any = torch._dynamo.config
    for limit in ("recompile_limit", "cache_size_limit"):  # newer and older name
        if hasattr(config, limit):
            setattr(config, limit, GRAPHS)
    for limit in ("accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(config, limit):
            setattr(config, limit, 8 * GRAPHS)
    for refuse in ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit"):
        if hasattr(config, refuse):
            setattr(config, refuse, True)
    blocks = [module for module in network.modules() if type(module).__name__ in KINDS]
    for block in blocks:
        block.compile(dynamic=False, fullgraph=True, backend=backend)
        block._compiled_call_impl = _contiguous_inputs(block._compiled_call_impl)
    return len(blocks)


def _contiguous_inputs(call: Any) -> Any:
    """The call with its tensors made contiguous first, outside the graph.

    A UNet hands its blocks transposed views. For these torch 2.13's inductor gives, on a CPU and
    with an adapter in force (PEFT's own layers, too), a wrong gradient of the input: its relative
    distance from the right one is near 1, while output and parameters' gradients are right.
    """

    def called(*inputs: Any, **named: Any) -> Any:
        given = [v.contiguous() if torch.is_tensor(v) else v for v in inputs]
        known = {k: v.contiguous() if torch.is_tensor(v) else v for k, v in named.items()}
        return call(*given, **known)

    return called


def counted() -> dict[str, int]:
    """Graphs and graph breaks since the process began (or `torch._dynamo.reset`)."""
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }
