"""In a real ComfyUI: the embedded checkpoint, prompted, draws what our own command draws.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from comfyui_graphs import node
from comfyui_server import ROOT, ComfyUI, Graph, needs_comfyui
from dpdmd_studio.app.library.choices import ASSETS
from dpdmd_studio.comfy_nodes.sampling.demo import LOADABLE
from PIL import Image

pytestmark = needs_comfyui
LABEL, FILE = next(iter(LOADABLE.items()))


def graph(prompt: str, seed: int, steps: int, scale: float) -> Graph:
    """Core's own nodes behind the demo's loader."""
    sampled = node(
        "KSampler", model=["demo", 0], positive=["yes", 0], negative=["no", 0], seed=seed,
        steps=steps, latent_image=["latent", 0], cfg=scale, denoise=1.0, sampler_name="euler",
        scheduler="simple",
    )  # fmt: skip
    return {
        "demo": node("DPDMDDemoCheckpoint", ckpt_name=LABEL),
        "yes": node("CLIPTextEncode", clip=["demo", 1], text=prompt),
        "no": node("CLIPTextEncode", clip=["demo", 1], text=""),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sampled": sampled,
        "image": node("VAEDecode", samples=["sampled", 0], vae=["demo", 2]),
        "save": node("SaveImage", images=["image", 0], filename_prefix="demo"),
    }


@pytest.mark.parametrize("prompt", ["red car on blue", "owl 3d", ""])
def test_a_prompt_draws_what_our_own_command_draws(comfyui: ComfyUI, prompt: str, tmp_path: Path):
    outputs = comfyui.run(graph(prompt, 7, 12, 2.0))
    (found,) = outputs["save"]["images"]
    theirs = np.asarray(Image.open(comfyui.base / "output" / found["filename"]).convert("RGB"))
    theirs = theirs + 0.5  # SaveImage cuts decimals off
    command = [
        sys.executable, str(ROOT), "sample", str(ASSETS / FILE), f"--prompt={prompt}", "--seeds=7",
        "--steps=12", "--guidance-scale=2", f"--output={tmp_path}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (target,) = tmp_path.glob("*.png")
    ours = np.asarray(Image.open(target).convert("RGB"))
    assert np.abs(theirs - ours).mean() <= 0.5


def test_unknown_words_are_named_and_a_long_prompt_is_cut(comfyui: ComfyUI):
    comfyui.run(graph("xylophone " + "red " * 20, 1, 1, 1.0))
    said = comfyui.said()
    assert "does not know: xylophone." in said
    assert "longer than the demo checkpoint reads" in said


def test_another_size_is_refused_with_what_to_set(comfyui: ComfyUI):
    wide = graph("owl 3d", 1, 1, 1.0)
    wide["latent"]["inputs"] |= {"width": 512, "height": 256}
    assert "512 x 256. Set width and height of the empty latent to 64." in comfyui.failure(wide)
