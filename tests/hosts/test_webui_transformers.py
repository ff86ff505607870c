"""In a real Forge Neo: Z-Image and Anima draw our pictures, and our LoRA of them is read whole.

Neo takes depth and widths of both, and of their encoders, as published; `FEWER_LAYERS` lets it take
as many layers as a file holds. Needs NEO_DIR, as webui_server.py says, and 12 GB of memory.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from comfyui_server import command
from dpdmd_studio.core.lora.file import read_lora
from PIL import Image
from webui_files import FEWER_LAYERS, neo_anima, neo_zimage
from webui_server import WebUI

SCRIPT = "DP-DMD few-step LoRAs"
FILES: dict[str, Callable[[Path], dict[str, Path]]] = {"anima": neo_anima, "zimage": neo_zimage}
PROMPT, NEGATIVE, LORA, SEED = "a red fox", "blurry", "own", 5
WIDTH, HEIGHT = 128, 64
TEACHER_STEPS, GUIDANCE = 5, 4.0
FP32 = ("--fp32-unet", "--fp32-text-enc", "--fp32-vae")
QUICK = (
    "--steps", "2", "--student-lr", "0.01", "--warmup-steps", "0", "--batch-size", "1",
    "--student-rank", "4", "--fake-rank", "4", "--fake-updates", "1", "--evaluate-every", "0",
    "--preview-every", "0", "--evaluation-prompts", "0", "--resolution", "64x64",
)  # fmt: skip
SAME = 2.0
"""Levels of 255 between the host's picture and ours."""


@dataclass(frozen=True)
class Pair:
    """The server with a family's files, and what our own commands made of them."""

    webui: WebUI
    lora: Path
    ours: dict[str, np.ndarray] = field(default_factory=dict)


def sample(files: dict[str, Path], folder: Path, *more: object) -> np.ndarray:
    """The picture of `sample`, as float32 levels of shape (H, W, 3)."""
    words = [*model_words(files), "--prompt", PROMPT, "--seeds", SEED, "--output", folder]
    command("sample", *words, "--resolution", f"{WIDTH}x{HEIGHT}", *more)
    with Image.open(next(folder.glob("*.png"))) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32)


def model_words(files: dict[str, Path]) -> list[object]:
    """How a command is told of the files."""
    where = ["--qwen", files["encoder"], "--vae", files["vae"]]
    return [files["denoiser"], *where, "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module", params=sorted(FILES))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Our commands are run before the server, as each needs the memory."""
    base = tmp_path_factory.mktemp(request.param)
    server = WebUI("NEO", base)
    files = FILES[request.param](base / "models")
    gc.collect()
    (base / "prompts.txt").write_text("a red circle\na blue square\n")
    lora = base / "models" / "Lora" / f"{LORA}.safetensors"
    where = ("--prompts", base / "prompts.txt", "--output", lora, "--run", base / "run")
    command("distill", *model_words(files), *where, *QUICK)
    guided = ("--negative", NEGATIVE, "--steps", TEACHER_STEPS, "--guidance-scale", GUIDANCE)
    ours = {
        "teacher": sample(files, base / "teacher", *guided),
        "student": sample(files, base / "student", "--lora", lora),
    }
    place = base / "extensions" / "fewer-layers" / "scripts" / "fewer_layers.py"
    place.parent.mkdir(parents=True)
    place.write_text(FEWER_LAYERS)
    try:
        server.start(*FP32)
        modules = {"forge_additional_modules": [str(files["encoder"]), str(files["vae"])]}
        assert server.request("/sdapi/v1/options", modules)[0] == 200
        yield Pair(server, lora, ours)
    finally:
        server.stop()


def draw(pair: Pair, prompt: str, script: tuple[object, ...], **wishes: object):
    """The host's picture and infotext."""
    body = {"width": WIDTH, "height": HEIGHT, "seed": SEED, "distilled_cfg_scale": 3.0, **wishes}
    return pair.webui.draw(prompt, alwayson_scripts={SCRIPT: {"args": list(script)}}, **body)


def difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest one, in levels of 255."""
    found = float(np.abs(theirs - ours).max())
    print(f"at most {found:.2f} of 255")  # noqa: T201
    return found


def test_the_teacher_is_drawn_as_we_draw_it(pair):
    asked = {"steps": TEACHER_STEPS, "cfg_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    usual = {"sampler_name": "Euler", "scheduler": "Simple"}
    picture, _ = draw(pair, PROMPT, (False,), **asked, **usual)
    assert pair.ours["teacher"].std() > 20
    assert difference(picture, pair.ours["teacher"]) <= SAME


@pytest.mark.parametrize("automatic", [True, False])
def test_our_lora_is_drawn_as_we_draw_it(pair, automatic):
    """By the accordion, whatever the request asks for, and by the sampler's name."""
    script = (True, "what the LoRA says", "", "off", 0, 0.0) if automatic else (False,)
    wrong = {"steps": 20, "cfg_scale": 7, "sampler_name": "Euler", "distilled_cfg_scale": 3.5}
    named = {"steps": 4, "cfg_scale": 1, "sampler_name": "DP-DMD"}
    asked = wrong if automatic else named
    picture, text = draw(pair, f"{PROMPT} <lora:{LORA}:1>", script, **asked)
    assert difference(picture, pair.ours["student"]) <= SAME, text
    assert np.abs(picture - pair.ours["teacher"]).mean() > 2


def test_the_host_reads_every_key_of_our_lora(pair):
    """The host's lines are broken by its terminal's width."""
    said = re.sub(r"(\s|networks\.py :: INFO)+", " ", pair.webui.said())
    line = r"Loaded own\.safetensors for KModel-UNet with (\d+) keys at weight 1.0 \(skipped (\d+)"
    found = set(re.findall(line, said))
    assert found == {(str(len(read_lora(pair.lora).modules)), "0")}, said[-2000:]
    assert "unmatched" not in said
