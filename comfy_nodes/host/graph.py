"""Which LoRA files lie before a node in the graph that runs, whoever's loaders they go through.

Only core's loaders of newer versions leave a LoRA's metadata on the MODEL. Other loaders, core's
bypass loader and older versions do not; but the graph names their files.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import folders, is_here

Prompt = Mapping[str, Any]
"""The host's graph: node id -> {"class_type", "inputs"}."""
MAX_NODES = 500
CARRIERS = {"MODEL", "GUIDER", "LORA_STACK", "*"}
"""Types of links that a LoRA may have come by; other packs' loaders hand lists of them on."""
TAG = re.compile(r"<lora:([^:<>]+)(?::([-+.\d]+))?")
STRENGTHS = ("strength_model", "model_strength", "model_weight", "model_str", "lora_wt", "strength")


@dataclass(frozen=True)
class LoraInGraph:
    """A LoRA of the host's list that a node names, with the strength that stands beside it."""

    name: str
    path: Path
    strength: float | None
    loader: str


def here() -> tuple[Prompt, str]:
    """(the graph that runs in this thread, its node that runs); both empty if the host hides it."""
    if not is_here():
        return {}, ""
    try:
        import server
        from comfy_execution.utils import get_executing_context
    except ImportError:  # before ComfyUI 0.3.48
        return {}, ""
    context, instance = get_executing_context(), getattr(server.PromptServer, "instance", None)
    running = getattr(getattr(instance, "prompt_queue", None), "currently_running", {})
    if context is None:
        return {}, ""
    for item in list(running.values()):
        if item[1] == context.prompt_id and isinstance(item[2], Mapping):
            return item[2], str(context.node_id)
    return {}, ""


def loras_before(graph: Prompt, node_id: str, first: str = "") -> list[LoraInGraph]:
    """The LoRAs that are switched on before a node, nearest first.

    Args:
        first: the node's own input that is followed; "" follows all that may carry a MODEL.
    """
    names = folders.file_names("loras")
    listed = {_plain(name).rpartition("/")[2]: name for name in names}
    listed |= {_plain(name): name for name in names}
    found: list[LoraInGraph] = []
    waiting = _links(graph, node_id, first)
    seen = {node_id}
    while waiting and len(seen) < MAX_NODES:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        kind, inputs = _node(graph, current)
        for text, strength in _named(inputs):
            if strength != 0 and (name := listed.get(_plain(text))) is not None:
                found.append(LoraInGraph(name, folders.file_path("loras", name), strength, kind))
        waiting += _links(graph, current)
    return found


def saves_model(graph: Prompt, node_id: str) -> bool:
    """Whether a node is one of core's that save the MODEL that comes in."""
    return _node(graph, node_id)[0] in ("CheckpointSave", "ModelSave")


def _node(graph: Prompt, node_id: str) -> tuple[str, Mapping[str, Any]]:
    node = graph.get(node_id)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    kind = str(node.get("class_type", "")) if isinstance(node, Mapping) else ""
    return kind, inputs if isinstance(inputs, Mapping) else {}


def _links(graph: Prompt, node_id: str, only: str = "") -> list[str]:
    """The nodes that a LoRA may have come from to this one."""
    _, inputs = _node(graph, node_id)
    found = []
    for name, value in inputs.items():
        if only and name != only:
            continue
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
        if is_link and _type(graph, str(value[0]), value[1]) in CARRIERS:
            found.append(str(value[0]))
    return found


def _type(graph: Prompt, node_id: str, slot: int) -> str:
    """What a node gives at an output, in the host's word; "*" where it cannot be found out."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS.get(_node(graph, node_id)[0])
    types = getattr(kind, "RETURN_TYPES", None) or ()
    return str(types[slot]) if 0 <= slot < len(types) else "*"


def _named(inputs: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """(text that may be a LoRA's name, strength beside it) of all that is not switched off."""
    for key, value in inputs.items():
        number = re.sub(r"^.*?(_?\d*)$", r"\1", key)
        if str(inputs.get(f"switch{number}", "On")).lower() in ("off", "false"):
            continue
        if isinstance(value, str):
            yield value, _strength(inputs, number)
            for name, strength in TAG.findall(value):
                yield name, _number(strength)
        elif isinstance(value, Mapping) and value.get("on", True) is not False:
            name = value.get("lora", value.get("name"))
            if isinstance(name, str):
                yield name, _strength(value, "")


def _strength(values: Mapping[str, Any], number: str) -> float | None:
    """The strength for the MODEL among a LoRA's settings, None where none is known by its name."""
    found = (_number(values.get(f"{name}{number}")) for name in STRENGTHS)
    return next((value for value in found if value is not None), None)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) or value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


def _plain(name: str) -> str:
    """A LoRA's name without its ending, with folders as every system writes them."""
    return name.strip().replace("\\", "/").removesuffix(".safetensors").lower()
