"""What anchored sampling costs an image in a real ComfyUI: LoRA as hooks, or patched twice.

`COMFYUI_PYTHON benchmarks/comfyui_anchored.py COMFYUI_DIR`, with the Python of that ComfyUI, on its
CPU. Checkpoints of the SD 1.x layout with random weights and a random LoRA on every attention,
feed-forward and convolution layer are made in a temporary folder. Every way draws in turn, so that
other load hits all alike: one image that is not timed, and one that is. Times are medians.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import mounting
import torch
from safetensors.torch import save_file

LAYOUTS: dict[str, dict[str, Any]] = {
    "one level": {
        "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
    },
    "four levels": {
        "num_res_blocks": [2] * 4, "channel_mult": [1] * 4,
        "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
    },
}  # fmt: skip
SHARED = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
    "in_channels": 4, "out_channels": 4, "model_channels": 320, "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8,
}  # fmt: skip
RANK = 32
PREFIX = "model.diffusion_model."


def main() -> None:
    """Boot, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--pictures", type=int, default=12, help="of every way")
    parser.add_argument("--pixels", type=int, default=64, help="side of the images")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    boot(chosen.comfyui)
    torch.set_num_threads(chosen.threads)
    version = sys.modules["comfyui_version"].__version__
    print(
        f"ComfyUI {version}, torch {torch.__version__}, Python {platform.python_version()}, CPU, "
        f"{chosen.threads} threads, fp32; {chosen.pixels}x{chosen.pixels} pixels, rank {RANK}, "
        f"medians of {chosen.pictures} images.\n"
    )
    print("| checkpoint | way | network evaluations | seconds an image |\n|---|---|---|---|")
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in LAYOUTS.items():
            notes.append(measure(name, layout, Path(folder), chosen))
    print("\n" + "\n".join(notes))


def boot(folder: Path) -> None:
    """ComfyUI's modules on the CPU, without its server."""
    sys.path.insert(0, str(folder.resolve()))
    sys.argv = [sys.argv[0], "--cpu", "--force-fp32"]
    os.chdir(folder)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.utils
    import comfyui_version

    logging.disable(logging.WARNING)
    comfy.utils.set_progress_bar_enabled(False)
    assert comfyui_version and mounting.ROOT


def make_files(layout: dict[str, Any], folder: Path) -> tuple[str, str, int, int]:
    """(checkpoint, LoRA, parameters of the network, layers of the LoRA), with random weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(0)
    network = UNetModel(**SHARED, **layout, operations=comfy.ops.disable_weight_init)
    state: dict[str, torch.Tensor] = {}
    lora: dict[str, torch.Tensor] = {}
    for key, empty in network.state_dict().items():
        if empty.dim() == 1:  # norms and biases
            state[PREFIX + key] = torch.full_like(empty, float(key.endswith("weight")))
            continue
        spread = empty[0].numel() ** -0.5
        state[PREFIX + key] = spread * torch.randn(empty.shape)
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        up = torch.randn(empty.shape[0], RANK, *[1] * (empty.dim() - 2))
        lora[f"{name}.lora_down.weight"] = spread * torch.randn(RANK, *empty.shape[1:])
        lora[f"{name}.lora_up.weight"] = 0.3 * RANK**-0.5 * up
        lora[f"{name}.alpha"] = torch.tensor(float(RANK))
    paths = str(folder / "checkpoint.safetensors"), str(folder / "lora.safetensors")
    save_file(state, paths[0])
    save_file(lora, paths[1])
    return *paths, sum(value.numel() for value in state.values()), len(lora) // 3


Draw = Callable[[int], torch.Tensor]


def ways_of(base: Any, few: Any, pixels: int) -> dict[str, tuple[Draw, int]]:
    """Name -> (latent of a seed, network evaluations) of every way to draw."""
    from dpdmd_studio.comfy_nodes.sampling.anchored import AnchoredSampler
    from dpdmd_studio.comfy_nodes.sampling.few_step import KSampler

    generator = torch.Generator().manual_seed(1)
    yes, no = ([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
    latent = {"samples": torch.zeros(1, 4, pixels // 8, pixels // 8)}
    settings = {
        "settings": "simple grid, ode", "anchor_steps": 0, "base_cfg": 0.0, "solver": "auto",
        "steps": 4, "denoise": 1.0,
    }  # fmt: skip

    def hooks(anchor: str, seed: int) -> torch.Tensor:
        found = AnchoredSampler().sample(
            base, few, yes, latent, seed, negative=no, anchor=anchor, **settings
        )
        return found["result"][0]["samples"]

    def patched(anchor: str, seed: int) -> torch.Tensor:
        with without_hooks():
            return hooks(anchor, seed)

    def alone(seed: int) -> torch.Tensor:
        return KSampler().sample(few, yes, latent, seed, 4, 1.0)["result"][0]["samples"]

    return {
        "few-step LoRA alone": (alone, 4),
        "one plain step, hooks": (partial(hooks, "one plain step"), 4),
        "one plain step, patched twice": (partial(patched, "one plain step"), 4),
        "7 guided steps, hooks": (partial(hooks, "guided steps"), 17),
        "7 guided steps, patched twice": (partial(patched, "guided steps"), 17),
    }


def measure(name: str, layout: dict[str, Any], folder: Path, chosen: argparse.Namespace) -> str:
    """Print the rows of one checkpoint; returns what is to be said of it."""
    import comfy.sd
    import comfy.utils

    checkpoint, lora, parameters, layers = make_files(layout, folder)
    base = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=False)[0]
    weights = comfy.utils.load_torch_file(lora, safe_load=True)
    few = comfy.sd.load_lora_for_models(base, None, weights, 1.0, 0.0)[0]
    ways = ways_of(base, few, chosen.pixels)
    title = f"{name}, {parameters / 1e6:.0f} M"
    with torch.inference_mode():
        found = {way: draws(0) for way, (draws, _) in ways.items()}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(chosen.pictures):
            for way, (draws, _) in ways.items():
                draws(seed)  # so that the model is as an image of this way leaves it
                begun = time.perf_counter()
                draws(seed)
                seconds[way].append(time.perf_counter() - begun)
    for way, (_, evaluations) in ways.items():
        median = statistics.median(seconds[way])
        print(f"| {title} | {way} | {evaluations} | {median:.3f} |", flush=True)
    return (
        f"- {title}, {layers} layers with a LoRA. There and back again without sampling: "
        f"{switches(base, few, chosen.pictures)}. {differences(found)}"
    )


def switches(base: Any, few: Any, times: int) -> str:
    """Median milliseconds of switching the LoRA on and off, either way."""
    import comfy.model_management
    from dpdmd_studio.comfy_nodes.host import loras
    from dpdmd_studio.comfy_nodes.sampling.lora_switch import hooked

    hook_type = loras.bypass_hook()
    assert hook_type is not None
    seconds: dict[str, list[float]] = {"hooks": [], "patched": []}
    comfy.model_management.load_models_gpu([base])
    for _ in range(times):
        begun = time.perf_counter()
        with hooked(base, few, hook_type):
            pass
        seconds["hooks"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        comfy.model_management.load_models_gpu([few])
        comfy.model_management.load_models_gpu([base])
        seconds["patched"].append(time.perf_counter() - begun)
    found = {way: 1000 * statistics.median(values) for way, values in seconds.items()}
    return f"hooks {found['hooks']:.1f} ms, patched {found['patched']:.1f} ms"


def differences(found: dict[str, torch.Tensor]) -> str:
    """Largest differences between the two forms of the LoRA, and how large latents are."""
    parts = []
    for anchor in ("one plain step", "7 guided steps"):
        hooks, patched = found[f"{anchor}, hooks"], found[f"{anchor}, patched twice"]
        assert torch.isfinite(hooks).all() and hooks.std() > 0
        largest, spread = float((hooks - patched).abs().max()), float(patched.std())
        parts.append(f"{anchor}: {largest:.1e} at a standard deviation of {spread:.2f}")
    apart = found["one plain step, hooks"] - found["few-step LoRA alone"]
    parts.append(f"anchored and alone differ by up to {float(apart.abs().max()):.2f}")
    return "Largest difference of the latents, hooks to patched: " + "; ".join(parts) + "."


@contextmanager
def without_hooks() -> Iterator[None]:
    """As a ComfyUI that has no bypass form of LoRAs."""
    from dpdmd_studio.comfy_nodes.host import loras

    real, loras.bypass_hook = loras.bypass_hook, lambda: None
    try:
        yield
    finally:
        loras.bypass_hook = real


if __name__ == "__main__":
    main()
