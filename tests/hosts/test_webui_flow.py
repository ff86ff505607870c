"""In a real A1111: an SDXL that is a rectified flow, from its distillation to our own picture.

Needs WEBUI_DIR; see webui_server.py. The host takes the file for eps: nothing in it says more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comfyui_server import command
from PIL import Image
from webui_files import small_sdxl
from webui_server import WebUI

SCRIPT = "DP-DMD few-step LoRAs"
SIDE = 128
SAME = 2.0
"""Levels of 255 between the host's picture and ours."""
PROMPT, LORA = "a red circle", "flow"


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A running A1111 whose only checkpoint is that SDXL."""
    server = WebUI("WEBUI", tmp_path_factory.mktemp("webui"))
    small_sdxl(server.base / "models" / "Stable-diffusion")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def ours(checkpoint: Path, lora: Path, folder: Path, *more: str) -> np.ndarray:
    """The picture of `sample`, as float32 levels of shape (H, W, 3)."""
    options = ("--lora", lora, "--prompt", PROMPT, "--seeds", "5", "--output", folder)
    size = ("--resolution", f"{SIDE}x{SIDE}", "--device", "cpu", "--dtype", "float32")
    command("sample", checkpoint, *options, *size, *more)
    with Image.open(next(folder.glob("*.png"))) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32)


def theirs(webui: WebUI, prompt: str, *, automatic: bool) -> tuple[np.ndarray, str]:
    """The host's picture and infotext with the sampler of ours."""
    values = [True, "what the LoRA says", "", "off", 0, 0.0] if automatic else [False]
    wishes = {"width": SIDE, "height": SIDE, "steps": 4, "cfg_scale": 1, "sampler_name": "DP-DMD"}
    offline = {"show_progress_type": "Approx cheap"}  # the usual previews of SDXL would be fetched
    scripts = {SCRIPT: {"args": values}}
    return webui.draw(prompt, alwayson_scripts=scripts, override_settings=offline, **wishes)


def test_a_flow_of_sdxl_is_drawn_as_we_draw_it(webui, tmp_path, home, capsys):
    models = webui.base / "models"
    checkpoint = models / "Stable-diffusion" / "small-sdxl.safetensors"
    lora = models / "Lora" / f"{LORA}.safetensors"
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    size = ("--resolution", f"{SIDE}x{SIDE}", "--device", "cpu", "--dtype", "float32")
    quick = ("--steps", "4", "--student-lr", "0.01", "--warmup-steps", "0", "--batch-size", "1")
    quiet = ("--evaluate-every", "0", "--preview-every", "0", "--evaluation-prompts", "0")
    files = ("--prompts", tmp_path / "prompts.txt", "--output", lora, "--run", tmp_path / "run")
    command("distill", checkpoint, "--prediction", "flow", *files, *size, *quick, *quiet)
    mine = ours(checkpoint, lora, tmp_path / "flow", "--prediction", "flow")
    for automatic in (False, True):
        picture, text = theirs(webui, f"{PROMPT} <lora:{LORA}:1>", automatic=automatic)
        difference = np.abs(picture - mine)
        with capsys.disabled():
            print(f"\nas a flow: at most {difference.max():.2f}, mean {difference.mean():.3f}")  # noqa: T201
        assert difference.max() <= SAME, text
    bare, _ = theirs(webui, PROMPT, automatic=False)
    assert np.abs(bare - mine).mean() > 2  # the LoRA is seen, and what samples as a flow with it
