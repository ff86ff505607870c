"""Writes the workflows that ComfyUI offers under Templates: example_workflows/*.json.

    python tools/make_workflows.py

Inputs, widgets and defaults of our nodes come from their classes, so run it after a node changes;
a test compares. Images beside the files are made by hand, from the output of the workflows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import mounting  # noqa: F401  (makes dpdmd_studio importable)
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
DEMO_SIZE, DEMO_PROMPT = [64, 64, 8], "bird on blue"


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


class Sheet:
    """A graph with what all of them have: a checkpoint, a prompt, an empty image."""

    def __init__(self, note: str, *, demo: bool = False) -> None:
        self.graph = Graph(slots=slots())
        self.add = self.graph.add
        if demo:
            self.checkpoint = self.ours("DPDMDDemoCheckpoint", (0, 0), {})
            self.empty, self.prompt = ("EmptySD3LatentImage", DEMO_SIZE), DEMO_PROMPT
        else:
            self.checkpoint = self.add("CheckpointLoaderSimple", (0, 0), [SDXL])
            self.empty, self.prompt = ("EmptyLatentImage", SDXL_SIZE), PROMPT
        self.graph.add("Note", (0, 1), [note])

    def ours(self, name: str, place: tuple[float, float], links: Mapping[str, Slot], **chosen: Any):
        """Add one of our nodes; its id."""
        return self.graph.add(name, place, widgets(name, **chosen), **links)

    def text_and_latent(self) -> tuple[Slot, Slot, Slot]:
        """Positive and negative conditioning, and the empty latent."""
        clip = (self.checkpoint, CLIP)
        yes = self.add("CLIPTextEncode", (2, 0), [self.prompt], clip=clip)
        no = self.add("CLIPTextEncode", (2, 1), [""], clip=clip)
        latent = self.add(self.empty[0], (2, 2), self.empty[1])
        return (yes, 0), (no, 0), (latent, 0)

    def save(self, latent: int, column: float, prefix: str) -> None:
        """Decode and save."""
        vae = (self.checkpoint, VAE)
        image = self.add("VAEDecode", (column, 0), [], samples=(latent, 0), vae=vae)
        self.add("SaveImage", (column, 1), [prefix], images=(image, 0))


def text_to_image() -> str:
    """A LoRA made here, at its own settings."""
    sheet = Sheet(
        "Choose your checkpoint and a LoRA that DP-DMD Studio made for it. Steps, noise levels and "
        "guidance come from the LoRA: nothing else is to be set."
    )
    model = (sheet.checkpoint, MODEL)
    lora = sheet.ours("DPDMDLoadLora", (1, 0), {"model": model}, lora_name=OUR_LORA)
    yes, no, latent = sheet.text_and_latent()
    links = {"model": (lora, 0), "recipe": (lora, 1), "positive": yes, "negative": no}
    sampler = sheet.ours("DPDMDKSampler", (3, 0), links | {"latent_image": latent})
    sheet.save(sampler, 4, "DP-DMD")
    return sheet.graph.to_json()


def anchored() -> str:
    """A few-step LoRA of somebody else, its first step sampled by the base model."""
    sheet = Sheet(
        "Few-step LoRAs make every seed look alike. Here the checkpoint itself samples the "
        "first part of the trajectory, where the layout is decided, and the LoRA the rest. Set the "
        "kind of LoRA under settings; several seeds side by side: DP-DMD Compare Seeds."
    )
    model = (sheet.checkpoint, MODEL)
    lora = sheet.add("LoraLoaderModelOnly", (1, 0), [FOREIGN_LORA, 1.0], model=model)
    yes, no, latent = sheet.text_and_latent()
    links = {"base_model": model, "few_step_model": (lora, 0), "positive": yes, "negative": no}
    sampler = sheet.ours(
        "DPDMDAnchoredSampler", (3, 0), links | {"latent_image": latent}, settings=DMD2
    )
    sheet.save(sampler, 4, "anchored")
    return sheet.graph.to_json()


def distil() -> str:
    """A checkpoint distilled on the canvas, and an image sampled with the new LoRA."""
    sheet = Sheet(
        "Turns a checkpoint into a 4-step LoRA, from the prompts alone. Choose the same checkpoint "
        "in Load Checkpoint and in DP-DMD Distill, and give a few hundred prompts of the kind you "
        "will use. It runs for hours at full size: progress and previews appear on the node and in "
        "the DP-DMD panel, Cancel keeps what there is."
    )
    return _distilled(sheet, checkpoint=SDXL, prompts=PROMPT)


def demo() -> str:
    """The embedded checkpoint distilled on the canvas, for a first try without a download."""
    sheet = Sheet(
        "Runs as it is, with the small checkpoint of this pack: some minutes of distilling, then "
        "eight images of one prompt in four steps. Try others, such as: owl 3d, red apple on blue, "
        "sea animal. Your own checkpoint: see the workflow that distils a checkpoint.",
        demo=True,
    )
    return _distilled(sheet, checkpoint=next(iter(LOADABLE)), output_name="demo-4step")


def _distilled(sheet: Sheet, **chosen: Any) -> str:
    trained = sheet.ours("DPDMDDistill", (0, 2), {}, **chosen)
    sheet.add("LossGraphNode", (1, 3), ["dp-dmd-loss"], loss=(trained, 1))
    model, weights = (sheet.checkpoint, MODEL), (trained, 0)
    lora = sheet.add("LoraModelLoader", (1, 0), [1.0, False], model=model, lora=weights)
    yes, no, latent = sheet.text_and_latent()
    links = {"model": (lora, 0), "recipe": (trained, 3), "positive": yes, "negative": no}
    sampler = sheet.ours("DPDMDKSampler", (3, 0), links | {"latent_image": latent})
    sheet.save(sampler, 4, "DP-DMD")
    return sheet.graph.to_json()


DMD2 = "DMD2 4 steps"
WORKFLOWS = {
    "DP-DMD text to image": text_to_image,
    "DP-DMD anchored sampling of any few-step LoRA": anchored,
    "DP-DMD distil a checkpoint": distil,
    "DP-DMD demo checkpoint": demo,
}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in WORKFLOWS.items():
        (FOLDER / f"{name}.json").write_text(make(), encoding="utf-8")
        print(FOLDER / f"{name}.json")


if __name__ == "__main__":
    main()
