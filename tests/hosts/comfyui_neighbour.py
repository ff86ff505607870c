"""A pack beside ours, as tests need one: a top-level `trainer`, and nodes to look at wires with."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import trainer

assert trainer.WHOSE == "the neighbour"  # type: ignore[attr-defined]


class RandomConditioning:
    """Conditioning for checkpoints without a text encoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "draw", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        numbers = {name: ("INT", {"max": 10**6}) for name in ("seed", "width", "pooled")}
        return {"required": numbers}

    def draw(self, seed, width, pooled):
        import torch

        generator = torch.Generator().manual_seed(seed)
        more = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return ([[torch.randn(1, 77, width, generator=generator), more]],)


class RandomControlNet:
    """A ControlNet of random weights in a UNet's layout."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        import comfy.cldm.cldm
        import comfy.controlnet
        import torch

        config = dict(model.model.model_config.unet_config)
        config |= {"hint_channels": 3, "dtype": torch.float32, "image_size": 32}
        for name in ("out_channels", "disable_unet_model_creation"):
            config.pop(name, None)
        network = comfy.cldm.cldm.ControlNet(**config)
        generator = torch.Generator().manual_seed(7)
        for value in network.parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.data = noise / value[0].numel() ** 0.5
        made = comfy.controlnet.ControlNet(
            network, load_device=model.load_device, manual_cast_dtype=None
        )
        return (made,)


class FileConditioning:
    """Conditioning from a file with `context` and `pooled`."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {})}}

    def load(self, path):
        from safetensors.torch import load_file

        found = load_file(path)
        more = {"pooled_output": found["pooled"]} if "pooled" in found else {}
        return ([[found["context"], more]],)


class SaveTensors:
    """Whatever latents and sigmas arrive, in a file."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "save", (), True

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"latent": ("LATENT",), "sigmas": ("SIGMAS",), "image": ("IMAGE",)}
        return {"required": {"path": ("STRING", {})}, "optional": optional}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def save(self, path, latent=None, sigmas=None, image=None):
        from safetensors.torch import save_file

        found = {"latent": latent and latent["samples"], "sigmas": sigmas, "image": image}
        kept = {
            name: value.clone().contiguous() for name, value in found.items() if value is not None
        }
        save_file(kept, path)
        return {"ui": {"text": [str(trainer.WHOSE)]}}


class NoteEvaluations:
    """Writes a line of every evaluation of the network: its level and its share of the batch."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def patch(self, model, path):
        def noted(network, call):
            sigma, parts = float(call["timestep"][0]), len(call["cond_or_uncond"])
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{sigma} {call['input'].shape[0]} {parts}\n")
            return network(call["input"], call["timestep"], **call["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(noted)
        return (model,)


NODES = (FileConditioning, NoteEvaluations, RandomConditioning, RandomControlNet, SaveTensors)
NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in NODES}
