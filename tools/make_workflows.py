"""Writes the workflows that ComfyUI offers under Templates: example_workflows/*.json.

    python tools/make_workflows.py

Inputs, widgets and defaults of our nodes come from their classes, so run it after a node changes;
a test compares. Images beside the files are made by hand, from the output of the workflows.

A sheet is read from left to right: groups stand side by side or one above the other, and a link
that passes a column does so in a lane above all nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting  # noqa: F401  (makes dpdmd_studio importable)
from dpdmd_studio.app.library.choices import ASSETS, embedded_world, starter
from dpdmd_studio.app.prompts.reading import parse_prompts
from dpdmd_studio.app.share.canvas import SLOTS, Graph, Slot, Slots
from dpdmd_studio.comfy_nodes import NODE_CLASS_MAPPINGS
from dpdmd_studio.comfy_nodes.sampling.demo import LOADABLE

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
MODEL, CLIP, VAE = 0, 1, 2
MORE_SLOTS: dict[str, Slots] = {
    "LoraModelLoader": ({"model": "MODEL", "lora": "LORA_MODEL"}, {"model": "MODEL"}),
    "LossGraphNode": ({"loss": "LOSS_MAP"}, {}),
    "PreviewImage": ({"images": "IMAGE"}, {}),
}
SDXL, SDXL_SIZE = "sd_xl_base_1.0.safetensors", [1024, 1024, 1]
OUR_LORA, FOREIGN_LORA = "my-dp-dmd-lora.safetensors", "dmd2_sdxl_4step_lora.safetensors"
PROMPT = "a lighthouse on a cliff at dusk, rough sea, detailed photograph"
DEMO, DEMO_SIZE = next(iter(LOADABLE)), [64, 64, 8]
HUGGING_FACE = "https://huggingface.co"
DOWNLOADS = {
    SDXL: ("checkpoints", f"{HUGGING_FACE}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main"),
    FOREIGN_LORA: ("loras", f"{HUGGING_FACE}/tianweiy/DMD2/resolve/main"),
}
"""(folder, address of the file's folder) of what the canvas offers to fetch where it is missing."""

# Pixels of the canvas. Nodes are drawn in two ways, and what they say makes them grow; the heights
# are those of the taller way, with room for a note.
WIDTH, WIDE, WIDE_NODES = 320, 420, {"DPDMDDistill", "CLIPTextEncode"}
HEIGHTS = {
    "Note": 200, "CheckpointLoaderSimple": 110, "DPDMDDemoCheckpoint": 110, "DPDMDLoadLora": 200,
    "LoraLoaderModelOnly": 110, "LoraModelLoader": 130, "CLIPTextEncode": 180,
    "EmptyLatentImage": 140, "EmptySD3LatentImage": 140, "DPDMDKSampler": 420,
    "DPDMDAnchoredSampler": 560, "DPDMDDistill": 980, "LossGraphNode": 300, "VAEDecode": 60,
    "SaveImage": 380,
}  # fmt: skip
TITLE, GAP, EDGE, HEAD = 30, 30, 30, 50
"""A node's title above it; between nodes; a group's margin; its own title."""
BETWEEN, ALLEY, LANE = 120, 45, 30
"""Between groups, and where in it links turn; between lanes."""


def given_inputs(kind: type[Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of a node's inputs, in the canvas's order."""
    groups = kind.INPUT_TYPES()
    listed = [*groups.get("required", {}).items(), *groups.get("optional", {}).items()]
    return [(name, spec[0], dict(spec[1]) if len(spec) > 1 else {}) for name, spec in listed]


def is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    """Whether the canvas shows an input as a control rather than a socket."""
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def slots() -> dict[str, Slots]:
    """Sockets of every node that the workflows use."""
    found = {**SLOTS, **MORE_SLOTS}
    for name, kind in NODE_CLASS_MAPPINGS.items():
        listed = {i: t for i, t, options in given_inputs(kind) if not is_widget(t, options)}
        names = getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES)
        found[name] = (listed, dict(zip(names, kind.RETURN_TYPES, strict=True)))
    return found


def widgets(name: str, **chosen: Any) -> list[Any]:
    """Values of our node's controls in the canvas's order: defaults but for those chosen."""
    values = []
    for control, kind, options in given_inputs(NODE_CLASS_MAPPINGS[name]):
        if not is_widget(kind, options):
            continue
        first = kind[0] if isinstance(kind, list) and kind else ""
        values.append(chosen.pop(control, options.get("default", first)))
        if options.get("control_after_generate", control in ("seed", "noise_seed")):
            values.append("randomize")
    assert not chosen, f"{name} has no controls {sorted(chosen)}"
    return values


class Part(NamedTuple):
    """A group: its title, and its nodes in columns from left to right, each from top to bottom."""

    title: str
    columns: list[list[int]]


class Sheet:
    """A graph with what all of them have: a checkpoint, a prompt, an empty image."""

    def __init__(self, note: str, loader: str = "CheckpointLoaderSimple", file: str = SDXL) -> None:
        self.graph = Graph(slots=slots())
        self.checkpoint = self.add(loader, [file])
        self.note = self.add("Note", [note])
        self.column_of: dict[int, int] = {}

    def add(self, kind: str, values: list[Any], **links: Slot) -> int:
        """Add a node; its id. Files that it names are offered for download."""
        node_id = self.graph.add(kind, (0, 0), values, **links)
        models = [
            {"name": name, "url": f"{DOWNLOADS[name][1]}/{name}", "directory": DOWNLOADS[name][0]}
            for name in values
            if isinstance(name, str) and name in DOWNLOADS
        ]
        if models:
            self.graph.nodes[node_id - 1]["properties"]["models"] = models
        return node_id

    def ours(self, name: str, links: Mapping[str, Slot], **chosen: Any) -> int:
        """Add one of our nodes; its id."""
        return self.add(name, widgets(name, **chosen), **links)

    def texts(self, prompt: str, size: list[int], kind: str = "EmptyLatentImage") -> list[int]:
        """Positive and negative prompt, and the empty latent."""
        clip = (self.checkpoint, CLIP)
        yes = self.add("CLIPTextEncode", [prompt], clip=clip)
        no = self.add("CLIPTextEncode", [""], clip=clip)
        return [yes, no, self.add(kind, size)]

    def image(self, latent: int, prefix: str) -> Part:
        """Decode and save."""
        vae = (self.checkpoint, VAE)
        decoded = self.add("VAEDecode", [], samples=(latent, 0), vae=vae)
        saved = self.add("SaveImage", [prefix], images=(decoded, 0))
        return Part("Image", [[decoded], [saved]])

    def to_json(self, *stacks: list[Part]) -> str:
        """The file, with groups laid out: those of one stack below each other."""
        left, column = 0, 0
        for stack in stacks:
            top, right = 0, left
            for part in stack:
                bottom, edge = self._place(part, left, top, column)
                top, right = bottom + GAP, max(right, edge)
            column += max(len(part.columns) for part in stack)
            left = right + BETWEEN
        self._lanes()
        return self.graph.to_json()

    def _place(self, part: Part, left: int, top: int, column: int) -> tuple[int, int]:
        """(bottom, right edge) of a group whose nodes are placed."""
        x, bottom = left + EDGE, top
        for offset, ids in enumerate(part.columns):
            nodes = [self.graph.nodes[node_id - 1] for node_id in ids]
            width = WIDE if WIDE_NODES & {node["type"] for node in nodes} else WIDTH
            y = top + HEAD
            for node in nodes:
                height = HEIGHTS[node["type"]]
                node["pos"], node["size"] = [x, y + TITLE], [width, height]
                self.column_of[node["id"]] = column + offset
                y += TITLE + height + GAP
            bottom = max(bottom, y - GAP + EDGE)
            x += width + 2 * EDGE
        right = x - EDGE
        group = {"title": part.title, "bounding": [left, top, right - left, bottom - top]}
        self.graph.groups.append({**group, "color": "#3f789e", "font_size": 24, "flags": {}})
        return bottom, right

    def _lanes(self) -> None:
        """Lead links that pass a column above it; those with the same ends take the same lane."""
        far: dict[tuple[int, int, int], list[int]] = {}
        for link, start, output, end, *_ in self.graph.links:
            if self.column_of[end] > self.column_of[start] + 1:
                far.setdefault((start, output, self.column_of[end]), []).append(link)
        reroutes: list[dict[str, Any]] = []
        extensions: list[dict[str, int]] = []
        for number, ((start, _, column), links) in enumerate(far.items(), 1):
            y, first = -LANE * number, len(reroutes) + 1
            begin = self._edges(self.column_of[start])[1] + ALLEY
            end = self._edges(column)[0] - ALLEY
            reroutes += [
                {"id": first, "pos": [begin, y], "linkIds": links},
                {"id": first + 1, "parentId": first, "pos": [end, y], "linkIds": links},
            ]
            extensions += [{"id": link, "parentId": first + 1} for link in links]
        self.graph.extra = {"linkExtensions": extensions, "reroutes": reroutes}

    def _edges(self, column: int) -> tuple[int, int]:
        """Where the nodes of a column begin and end."""
        ids = [node_id for node_id, found in self.column_of.items() if found == column]
        nodes = [self.graph.nodes[node_id - 1] for node_id in ids]
        right = max(node["pos"][0] + node["size"][0] for node in nodes)
        return min(node["pos"][0] for node in nodes), right


def text_to_image() -> str:
    """A LoRA made here, at its own settings."""
    sheet = Sheet(
        "Choose your checkpoint and a LoRA that DP-DMD Studio made for it. Steps, noise levels and "
        "guidance come from the LoRA: nothing else is to be set."
    )
    model = (sheet.checkpoint, MODEL)
    lora = sheet.ours("DPDMDLoadLora", {"model": model}, lora_name=OUR_LORA)
    yes, no, latent = texts = sheet.texts(PROMPT, SDXL_SIZE)
    links = {"model": (lora, 0), "recipe": (lora, 1), "positive": (yes, 0), "negative": (no, 0)}
    sampler = sheet.ours("DPDMDKSampler", links | {"latent_image": (latent, 0)})
    return sheet.to_json(
        [Part("Checkpoint", [[sheet.note, sheet.checkpoint]])],
        [Part("Few-step LoRA", [[lora]]), Part("Prompt and size", [texts])],
        [Part("Sample", [[sampler]])],
        [sheet.image(sampler, "DP-DMD")],
    )


def anchored() -> str:
    """A few-step LoRA of somebody else, its first step sampled by the base model."""
    sheet = Sheet(
        "Few-step LoRAs make every seed look alike. Here the checkpoint itself samples the "
        "first part of the trajectory, where the layout is decided, and the LoRA the rest. Set the "
        "kind of LoRA under settings; several seeds side by side: DP-DMD Compare Seeds."
    )
    model = (sheet.checkpoint, MODEL)
    lora = sheet.add("LoraLoaderModelOnly", [FOREIGN_LORA, 1.0], model=model)
    yes, no, latent = texts = sheet.texts(PROMPT, SDXL_SIZE)
    links = {"base_model": model, "few_step_model": (lora, 0), "positive": (yes, 0)}
    links |= {"negative": (no, 0), "latent_image": (latent, 0)}
    sampler = sheet.ours("DPDMDAnchoredSampler", links, settings=DMD2)
    return sheet.to_json(
        [Part("Checkpoint", [[sheet.note, sheet.checkpoint]])],
        [Part("Few-step LoRA of any maker", [[lora]]), Part("Prompt and size", [texts])],
        [Part("Sample", [[sampler]])],
        [sheet.image(sampler, "anchored")],
    )


def distil() -> str:
    """A checkpoint distilled on the canvas, and an image sampled with the new LoRA."""
    sheet = Sheet(
        "Turns a checkpoint into a 4-step LoRA, from the prompts alone. Choose it in Load "
        "Checkpoint: DP-DMD Distill takes the file that is connected. These prompts are a "
        "template; write what you will use, a few hundred. It runs for hours at full size: "
        "progress and previews appear on the node and in the DP-DMD panel, Cancel keeps what there "
        "is."
    )
    model = (sheet.checkpoint, MODEL)
    prompts = starter("photo")
    trained = sheet.ours("DPDMDDistill", {"model": model}, checkpoint=SDXL, prompts=prompts)
    return _with_the_new_lora(sheet, trained, sheet.texts(PROMPT, SDXL_SIZE))


def demo() -> str:
    """The embedded checkpoint, distilled and sampled without a download."""
    sheet = Sheet(
        "Runs as it is, without a download: press Run. The small checkpoint that ships with this "
        "pack (64 x 64 pixels) is distilled from its own captions, in minutes on a graphics card, "
        "longer on a CPU, and the new LoRA draws eight images in four steps. Progress and previews "
        "appear on the node and in the DP-DMD panel.",
        "DPDMDDemoCheckpoint",
        DEMO,
    )
    trained = sheet.ours("DPDMDDistill", {}, checkpoint=DEMO, output_name="demo-4step")
    captions = starter(embedded_world(ASSETS / LOADABLE[DEMO]))
    first = parse_prompts(captions, "The captions").prompts[0]
    texts = sheet.texts(first, DEMO_SIZE, "EmptySD3LatentImage")
    return _with_the_new_lora(sheet, trained, texts)


def _with_the_new_lora(sheet: Sheet, trained: int, texts: list[int]) -> str:
    """What follows DP-DMD Distill: its loss, its LoRA on the MODEL, an image."""
    loss = sheet.add("LossGraphNode", ["dp-dmd-loss"], loss=(trained, 1))
    model, weights = (sheet.checkpoint, MODEL), (trained, 0)
    lora = sheet.add("LoraModelLoader", [1.0, False], model=model, lora=weights)
    yes, no, latent = texts
    links = {"model": (lora, 0), "recipe": (trained, 3), "positive": (yes, 0), "negative": (no, 0)}
    sampler = sheet.ours("DPDMDKSampler", links | {"latent_image": (latent, 0)})
    return sheet.to_json(
        [Part("Checkpoint", [[sheet.note, sheet.checkpoint]])],
        [Part("Distil", [[trained]])],
        [Part("The new LoRA", [[lora, loss]]), Part("Prompt and size", [texts])],
        [Part("Sample", [[sampler]])],
        [sheet.image(sampler, "DP-DMD")],
    )


DMD2 = "DMD2 4 steps"
WORKFLOWS = {
    "DP-DMD text to image": text_to_image,
    "DP-DMD anchored sampling of any few-step LoRA": anchored,
    "DP-DMD distil a checkpoint": distil,
    "DP-DMD demo without a download": demo,
}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in WORKFLOWS.items():
        (FOLDER / f"{name}.json").write_text(make(), encoding="utf-8")
        print(FOLDER / f"{name}.json")


if __name__ == "__main__":
    main()
