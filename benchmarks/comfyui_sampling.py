"""What our sampling nodes cost in a real ComfyUI, against core's euler and simple at equal steps.

`COMFYUI_PYTHON benchmarks/comfyui_sampling.py COMFYUI_DIR`, with the Python of that ComfyUI, on its
CPU. A checkpoint of the SD 1.x layout with random weights and a random LoRA with a recipe are made
in a temporary folder. Each way is paired with core's: one image each, in turn, the order changing
from pair to pair, so that other load hits both alike. The same pairs without a network (it answers
at once) leave only the code around it. The pack's import is timed in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfyui_anchored
import mounting
import torch

STEPS = 4
HEAVY = ("diffusers", "transformers", "peft", "accelerate", "xformers", "gradio", "tkinter")
IMPORT = """
import asyncio, importlib.util, json, sys, time
sys.path.insert(0, {comfyui!r})
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes, server
server.PromptServer(asyncio.new_event_loop())
before = set(sys.modules)
begun, cpu = time.perf_counter(), time.process_time()
name = {pack!r}.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, {pack!r} + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
count = len(module.NODE_CLASS_MAPPINGS)
seconds = time.perf_counter() - begun, time.process_time() - cpu
new = sorted({{key.partition(".")[0] for key in set(sys.modules) - before}} - {{name}})
print(json.dumps([*seconds, count, [key for key in new if not key.startswith(name)]]))
"""
Draw = Callable[[int], torch.Tensor]


def main() -> None:
    """Boot, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--pixels", type=int, default=64, help="side of the images")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    imports = pack_import(chosen.comfyui.resolve())
    comfyui_anchored.boot(chosen.comfyui)
    torch.set_num_threads(chosen.threads)
    version = sys.modules["comfyui_version"].__version__
    print(
        f"ComfyUI {version}, torch {torch.__version__}, Python {platform.python_version()}, CPU, "
        f"{chosen.threads} threads, fp32, {chosen.pixels}x{chosen.pixels} pixels, {STEPS} steps, "
        f"medians of {chosen.pairs} interleaved pairs.\n"
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        report_ways(Path(folder), chosen)
    print(f"\n{imports}")


def report_ways(folder: Path, chosen: argparse.Namespace) -> None:
    """Print a row for every way to sample."""
    model = few_step_model(folder)
    evaluations: list[tuple[int, int]] = []
    size = chosen.pixels // 8
    real, empty = (
        ways_of(with_network(model, evaluations, run=run), size) for run in (True, False)
    )
    core, core_alone = real.pop("core"), empty.pop("core")
    reference = core(0)
    spread = float(reference.std())
    print(
        "| way | evaluations (batch) | largest difference to core / std | s an image, core | ours "
        "| ratio, quartiles | own code a step, ms |\n|---|---|---|---|---|---|---|"
    )
    for name, draw in real.items():
        evaluations.clear()
        apart = float((draw(0) - reference).abs().max()) / spread
        counted = ", ".join(
            sorted({f"{len(evaluations)} ({n * parts})" for n, parts in evaluations})
        )
        pairs = timed_pairs(core, draw, chosen.pairs)
        alone = timed_pairs(core_alone, empty[name], 10 * chosen.pairs)
        first, middle, last = statistics.quantiles([ours / theirs for theirs, ours in pairs], n=4)
        theirs, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
        own = statistics.median(1000 * (ours - theirs) / STEPS for theirs, ours in alone)
        print(
            f"| {name} | {counted} | {apart:.1e} | {theirs:.4f} | {ours:.4f} | {middle:.4f} "
            f"({first:.4f} .. {last:.4f}) | {own:+.3f} |",
            flush=True,
        )
    alone = [seconds for seconds, _ in timed_pairs(core_alone, core_alone, 10 * chosen.pairs)]
    print(f"\nCore without a network: {1000 * statistics.median(alone) / STEPS:.3f} ms a step.")


def few_step_model(folder: Path) -> Any:
    """A MODEL with a random LoRA, and the recipe on it as our loader leaves it."""
    import comfy.sd
    import comfy.utils
    from dpdmd_studio.comfy_nodes.host import models
    from dpdmd_studio.core.recipe.few_step import default_recipe

    layout = comfyui_anchored.LAYOUTS["four levels"]
    checkpoint, lora, parameters, _ = comfyui_anchored.make_files(layout, folder)
    base = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=False)[0]
    weights = comfy.utils.load_torch_file(lora, safe_load=True)
    model = comfy.sd.load_lora_for_models(base, None, weights, 1.0, 0.0)[0]
    models.attach(model, models.RECIPE_ATTACHMENT, default_recipe("sd1", "eps").to_json())
    print(f"A network of {parameters / 1e6:.0f} M parameters in four levels.\n")
    return model


def with_network(model: Any, evaluations: list[tuple[int, int]], *, run: bool) -> Any:
    """The MODEL with its evaluations counted, or answered at once without a network."""

    def network(apply: Callable[..., torch.Tensor], call: dict[str, Any]) -> torch.Tensor:
        parts = len(call["cond_or_uncond"])
        evaluations.append((call["input"].shape[0] // parts, parts))
        return apply(call["input"], call["timestep"], **call["c"]) if run else call["input"] * 0.5

    clone = model.clone()
    clone.set_model_unet_function_wrapper(network)
    return clone


def ways_of(model: Any, size: int) -> dict[str, Draw]:
    """Every way to draw the latent of a seed."""
    import comfy_extras.nodes_custom_sampler as custom
    import nodes
    from dpdmd_studio.comfy_nodes.sampling import few_step as dropdown
    from dpdmd_studio.comfy_nodes.sampling.few_step import KSampler, Sampler

    dropdown.register()
    generator = torch.Generator().manual_seed(1)
    yes, no = ([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
    latent = {"samples": torch.zeros(1, 4, size, size)}

    def by_core(sampler: str, scheduler: str) -> Draw:
        return lambda seed: nodes.common_ksampler(
            model, seed, STEPS, 1.0, sampler, scheduler, yes, no, latent
        )[0]["samples"]

    def all_in_one(seed: int) -> torch.Tensor:
        return KSampler().sample(model, yes, latent, seed, 0, 1.0, no)["result"][0]["samples"]

    def in_parts(seed: int) -> torch.Tensor:
        sampler, sigmas, _ = Sampler().make(model, 0, 1.0)["result"]
        guider = custom.Guider_Basic(model)
        guider.set_conds(yes)
        noise = custom.Noise_RandomNoise(seed)
        found = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)
        return found[0]["samples"]

    return {
        "core": by_core("euler", "simple"),
        "KSampler, dp_dmd and dp_dmd": by_core("dp_dmd", "dp_dmd"),
        "DP-DMD KSampler": all_in_one,
        "DP-DMD Sampler, SamplerCustomAdvanced": in_parts,
    }


def timed_pairs(one: Draw, other: Draw, count: int) -> list[tuple[float, float]]:
    """Seconds of pairs of images, after one of each that is not counted."""
    one(0), other(0)
    found = []
    for seed in range(count):
        seconds = {}
        for way in (one, other) if seed % 2 else (other, one):
            begun = time.perf_counter()
            way(seed)
            seconds[way] = time.perf_counter() - begun
        found.append((seconds[one], seconds[other]))
    return found


def pack_import(comfyui: Path, times: int = 7) -> str:
    """What loading the pack adds to a start: seconds, and libraries that nobody had loaded."""
    program = IMPORT.format(comfyui=str(comfyui), pack=str(mounting.ROOT))
    seconds, cpu, new, count = [], [], [], 0
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=comfyui
        )
        took, used, count, new = json.loads(done.stdout.splitlines()[-1])
        seconds.append(took)
        cpu.append(used)
    heavy = [name for name in new if name in HEAVY]
    return (
        f"The pack with its {count} nodes adds {statistics.median(seconds):.3f} s "
        f"({min(seconds):.3f} .. {max(seconds):.3f}, {times} starts; of it "
        f"{statistics.median(cpu):.3f} s of CPU time) to a start. Modules that nothing had loaded "
        f"before: {', '.join(new) or 'none'}; heavy ones: {', '.join(heavy) or 'none'}."
    )


if __name__ == "__main__":
    main()
