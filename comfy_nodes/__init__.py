"""ComfyUI nodes. ComfyUI reads the two tables through the package root."""

from __future__ import annotations

from typing import Any

from . import (
    anchored,
    attention_node,
    compare,
    distill,
    dropdown,
    host,
    lora_node,
    routes,
    runs_node,
    sampling,
)

_MODULES = (lora_node, sampling, anchored, attention_node, compare, distill, runs_node)

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "DPDMD" + kind.__name__.removeprefix("DPDMD"): kind
    for module in _MODULES
    for kind in module.NODES
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    name: kind.DISPLAY_NAME for name, kind in NODE_CLASS_MAPPINGS.items()
}

if host.is_here():
    dropdown.register()
    routes.register()
