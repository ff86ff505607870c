"""ComfyUI nodes. ComfyUI reads the two tables through the package root.

What may be imported here: law 1 in docs/architecture.md.
"""

from __future__ import annotations

from typing import Any

from ..core import errors
from . import host
from .sampling import anchored, compare
from .sampling import attention as attention_node
from .sampling import demo as demo_node
from .sampling import few_step as few_step_nodes
from .sampling import load_lora as lora_node
from .training import distill, routes
from .training import runs as runs_node

_MODULES = (
    lora_node, few_step_nodes, anchored, attention_node, compare, demo_node, distill, runs_node,
)  # fmt: skip

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "DPDMD" + kind.__name__.removeprefix("DPDMD"): kind
    for module in _MODULES
    for kind in module.NODES
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    name: kind.DISPLAY_NAME for name, kind in NODE_CLASS_MAPPINGS.items()
}

if host.is_here():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.DPDMDError):
            kind.__module__ = "DP-DMD"  # ComfyUI shows it, and would show the pack's path
    few_step_nodes.register()
    routes.register()
