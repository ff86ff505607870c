"""Graphs in the format of ComfyUI's canvas (https://docs.comfy.org/specs/workflow_json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# type -> (inputs that links end in, outputs), each as (name, type)
Slots = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
SLOTS: dict[str, Slots] = {
    "CheckpointLoaderSimple": ((), (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))),
    "CLIPLoader": ((), (("CLIP", "CLIP"),)),
    "DualCLIPLoader": ((), (("CLIP", "CLIP"),)),
    "TripleCLIPLoader": ((), (("CLIP", "CLIP"),)),
    "VAELoader": ((), (("VAE", "VAE"),)),
    "LoraLoader": (
        (("model", "MODEL"), ("clip", "CLIP")),
        (("MODEL", "MODEL"), ("CLIP", "CLIP")),
    ),
    "LoraLoaderModelOnly": ((("model", "MODEL"),), (("MODEL", "MODEL"),)),
    "ModelSamplingSD3": ((("model", "MODEL"),), (("MODEL", "MODEL"),)),
    "ModelSamplingDiscrete": ((("model", "MODEL"),), (("MODEL", "MODEL"),)),
    "CLIPSetLastLayer": ((("clip", "CLIP"),), (("CLIP", "CLIP"),)),
    "CLIPTextEncode": ((("clip", "CLIP"),), (("CONDITIONING", "CONDITIONING"),)),
    "EmptyLatentImage": ((), (("LATENT", "LATENT"),)),
    "EmptySD3LatentImage": ((), (("LATENT", "LATENT"),)),
    "KSampler": (
        (
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        ),
        (("LATENT", "LATENT"),),
    ),
    "VAEDecode": ((("samples", "LATENT"), ("vae", "VAE")), (("IMAGE", "IMAGE"),)),
    "SaveImage": ((("images", "IMAGE"),), ()),
    "Note": ((), ()),
}
COLUMN, ROW = 400, 240
Slot = tuple[int, int]
"""Where a link begins: node id and number of its output."""


@dataclass
class Graph:
    """Nodes and links as they are added."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    slots: Mapping[str, Slots] = field(default_factory=lambda: SLOTS)

    def add(self, kind: str, place: tuple[float, float], widgets: list[Any], **links: Slot) -> int:
        """Add a node fed by `links`; its id. `widgets` are its values in the node's own order."""
        inputs, outputs = self.slots[kind]
        node_id = len(self.nodes) + 1
        node: dict[str, Any] = {
            "id": node_id,
            "type": kind,
            "pos": [COLUMN * place[0], ROW * place[1]],
            "size": [340, 180],
            "flags": {},
            "order": node_id - 1,
            "mode": 0,
            "inputs": [{"name": name, "type": type_, "link": None} for name, type_ in inputs],
            "outputs": [
                {"name": name, "type": type_, "links": [], "slot_index": number}
                for number, (name, type_) in enumerate(outputs)
            ],
            "properties": {"Node name for S&R": kind},
            "widgets_values": widgets,
        }
        self.nodes.append(node)
        for number, slot in enumerate(node["inputs"]):
            if slot["name"] in links:  # inputs that may stay open
                self._link(links[slot["name"]], node_id, number, slot)
        return node_id

    def _link(self, start: Slot, node_id: int, number: int, slot: dict[str, Any]) -> None:
        link_id = len(self.links) + 1
        self.links.append([link_id, *start, node_id, number, slot["type"]])
        self.nodes[start[0] - 1]["outputs"][start[1]]["links"].append(link_id)
        slot["link"] = link_id

    def to_json(self) -> str:
        """The file that the canvas opens."""
        content = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
