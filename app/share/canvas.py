"""Graphs in the format of ComfyUI's canvas (https://docs.comfy.org/specs/workflow_json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Slots = tuple[Mapping[str, str], Mapping[str, str]]
"""Inputs that links end in, then outputs: type by name."""

SLOTS: dict[str, Slots] = {
    "CheckpointLoaderSimple": ({}, {"MODEL": "MODEL", "CLIP": "CLIP", "VAE": "VAE"}),
    "UNETLoader": ({}, {"MODEL": "MODEL"}),
    "CLIPLoader": ({}, {"CLIP": "CLIP"}),
    "DualCLIPLoader": ({}, {"CLIP": "CLIP"}),
    "TripleCLIPLoader": ({}, {"CLIP": "CLIP"}),
    "VAELoader": ({}, {"VAE": "VAE"}),
    "LoraLoader": ({"model": "MODEL", "clip": "CLIP"}, {"MODEL": "MODEL", "CLIP": "CLIP"}),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, {"MODEL": "MODEL"}),
    "ModelSamplingSD3": ({"model": "MODEL"}, {"MODEL": "MODEL"}),
    "ModelSamplingAuraFlow": ({"model": "MODEL"}, {"MODEL": "MODEL"}),
    "ModelSamplingDiscrete": ({"model": "MODEL"}, {"MODEL": "MODEL"}),
    "CLIPSetLastLayer": ({"clip": "CLIP"}, {"CLIP": "CLIP"}),
    "CLIPTextEncode": ({"clip": "CLIP"}, {"CONDITIONING": "CONDITIONING"}),
    "EmptyLatentImage": ({}, {"LATENT": "LATENT"}),
    "EmptySD3LatentImage": ({}, {"LATENT": "LATENT"}),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        {"LATENT": "LATENT"},
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, {"IMAGE": "IMAGE"}),
    "SaveImage": ({"images": "IMAGE"}, {}),
    "Note": ({}, {}),
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
    groups: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

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
            "inputs": [
                {"name": name, "type": type_, "link": None} for name, type_ in inputs.items()
            ],
            "outputs": [
                {"name": name, "type": type_, "links": [], "slot_index": number}
                for number, (name, type_) in enumerate(outputs.items())
            ],
            "properties": {"Node name for S&R": kind},
            "widgets_values": widgets,
        }
        self.nodes.append(node)
        for number, slot in enumerate(node["inputs"]):
            if slot["name"] in links:  # inputs may stay open
                start_id, output = links[slot["name"]]
                slot["link"] = len(self.links) + 1
                self.links.append([slot["link"], start_id, output, node_id, number, slot["type"]])
                self.nodes[start_id - 1]["outputs"][output]["links"].append(slot["link"])
        return node_id

    def to_json(self) -> str:
        """The file that the canvas opens."""
        content = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": self.extra,
            "version": 0.4,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
