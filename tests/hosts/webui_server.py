"""A real A1111, Forge, reForge or Forge Neo with this checkout among its extensions, for tests.

WEBUI_DIR names an A1111 1.10, FORGE_DIR a Forge, REFORGE_DIR a reForge and NEO_DIR a Forge Neo;
WEBUI_PYTHON and so on their interpreters, where those are not `venv` in that folder. All have to be
able to start offline: A1111 wants the tokenizer of CLIP-L in the cache that HF_HOME names. What
they write goes into a folder of the test.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_server import clone_checkout
from PIL import Image

BOOT_SECONDS = 240.0
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-python-version-check",
    "--skip-version-check", "--no-download-sd-model", "--api",
)  # fmt: skip
ON_CPU = {
    "WEBUI": ("--use-cpu", "all", "--precision", "full", "--no-half", "--disable-nan-check"),
    "FORGE": ("--always-cpu",),
    "REFORGE": ("--always-cpu",),
    "NEO": ("--cpu",),
}
UNKNOWN = {"NEO": ("--no-download-sd-model",)}
SETTINGS = {"REFORGE": {"show_progress_type": "Approx cheap"}}
"""Offline, reForge's own choice of previews would be fetched."""
NEIGHBOUR = """\
import sys
import trainer
assert trainer.WHOSE == "the neighbour", trainer
print("the neighbour has its trainer")
"""
DETAILER = """\
import copy, json, os
from pathlib import Path
import gradio as gr
from modules import processing, script_callbacks, scripts

CALLS = []

def note(params):
    p = params.denoiser.p
    kind = "hires" if getattr(p, "is_hr_pass", False) else getattr(p, "dpdmd_test_pass", "first")
    level = round(float(params.sigma.flatten()[0]), 3)
    CALLS.append([kind, level, float(p.cfg_scale)])
    place = Path(os.environ["DPDMD_HOME"]).parent / "calls.json"
    place.write_text(json.dumps(CALLS))

script_callbacks.on_cfg_denoiser(note)

class Detailer(scripts.Script):
    def title(self):
        return "a detailer"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", label="denoising strengths")]

    def before_process(self, p, strengths):
        CALLS.clear()

    def postprocess_image(self, p, pp, strengths):
        for strength in filter(None, (strengths or "").split(",")):
            again = processing.StableDiffusionProcessingImg2Img(
                init_images=[pp.image], denoising_strength=float(strength), sd_model=p.sd_model,
                prompt=p.all_prompts[0], negative_prompt=p.all_negative_prompts[0], seed=p.seed,
                sampler_name=p.sampler_name, scheduler=p.scheduler, steps=p.steps,
                cfg_scale=p.cfg_scale, width=p.width, height=p.height, batch_size=1, n_iter=1,
                do_not_save_samples=True, do_not_save_grid=True,
                extra_generation_params=dict(p.extra_generation_params),
            )
            again.dpdmd_test_pass = "detail " + strength
            again.scripts, again.script_args = copy.copy(p.scripts), []  # reForge asks it
            again.scripts.alwayson_scripts, again.scripts.callback_map = [], {}
            processing.process_images(again)
"""
"""Redoes each image as ADetailer does; notes every evaluation (pass, level, CFG)."""


class WebUI:
    """A server, and what a browser or a program would do with it."""

    def __init__(self, kind: str, base: Path) -> None:
        """Args:
        kind: "WEBUI", "FORGE", "REFORGE" or "NEO", the start of its variables' names.
        """
        folder = os.environ.get(f"{kind}_DIR")
        if not folder:
            pytest.skip(f"{kind}_DIR names no web UI")
        self.kind, self.folder, self.base = kind, Path(folder), base
        default = self.folder / "venv" / "bin" / "python"
        self.python = os.environ.get(f"{kind}_PYTHON") or str(default)
        self.home, self.log = base / "dpdmd-home", base / "server.log"
        for name in ("Stable-diffusion", "Lora", "VAE"):
            (base / "models" / name).mkdir(parents=True, exist_ok=True)
        self.extension = base / "extensions" / "dp-dmd.studio"
        clone_checkout(self.extension)
        neighbour = base / "extensions" / "a-neighbour"
        for place, text in (("trainer/__init__.py", "WHOSE = 'the neighbour'\n"),
                            ("scripts/neighbour.py", NEIGHBOUR),
                            ("scripts/detailer.py", DETAILER)):  # fmt: skip
            (neighbour / place).parent.mkdir(parents=True, exist_ok=True)
            (neighbour / place).write_text(text)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if kind in SETTINGS:
            (base / "config.json").write_text(json.dumps(SETTINGS[kind]))
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds_to_boot = 0.0
        self.seconds_between_looks = 0.3

    def start(self, *arguments: str) -> None:
        """Boot the server and wait until it answers."""
        models = self.base / "models"
        flags = [flag for flag in FLAGS if flag not in UNKNOWN.get(self.kind, ())]
        command = [self.python, "launch.py", *flags, *ON_CPU[self.kind], "--port", str(self.port)]
        command += ["--data-dir", str(self.base), "--lora-dir", str(models / "Lora"), *arguments]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        variables = os.environ | offline | {"DPDMD_HOME": str(self.home)}
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=variables, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        while not self.answers():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() - began < BOOT_SECONDS, self.said()[-3000:]
            time.sleep(self.seconds_between_looks)
        self.seconds_to_boot = time.monotonic() - began

    def stop(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """The server's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def answers(self) -> bool:
        """Whether the server is up; Forge's routes answer before its scripts are ready."""
        if "Startup time:" not in self.said():
            return False
        try:
            return self.request("/sdapi/v1/samplers")[0] in (200, 401)
        except OSError:
            return False

    def request(self, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and content of one request; with a body it is a POST of JSON."""
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            request = urllib.request.Request(url, data, headers=kind | headers)
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        status, content = self.request(path)
        assert status == 200, (path, status, content[:500])
        return json.loads(content)

    def calls(self) -> list[tuple[str, float, float]]:
        """(pass, level, CFG) of each evaluation of the last image."""
        return [tuple(call) for call in json.loads((self.base / "calls.json").read_text())]

    def hires_fix(self, **wishes: Any) -> dict[str, Any]:
        """What a request has to say for hires fix at twice the size."""
        latent, usual = (
            self.get(f"/sdapi/v1/{kind}") for kind in ("latent-upscale-modes", "upscalers")
        )
        upscaler = [*latent, *usual][0]["name"]  # Neo has none of latents
        asked = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler, **wishes}
        if self.kind in ("FORGE", "NEO"):  # their API has no default
            asked["hr_additional_modules"] = ["Use same choices"]
        return asked

    def draw(self, prompt: str, **wishes: Any) -> tuple[np.ndarray, str]:
        """(picture as float32 levels (H, W, 3), infotext) of a generation."""
        body: dict[str, Any] = {"prompt": prompt, "seed": 5, **wishes}
        body["override_settings"] = {"randn_source": "CPU", **wishes.get("override_settings", {})}
        if isinstance(body.get("init_images"), np.ndarray):
            body["init_images"] = [as_png(body["init_images"])]
        kind = "img2img" if "init_images" in body else "txt2img"
        status, content = self.request(f"/sdapi/v1/{kind}", body)
        assert status == 200, (content[:500], self.said()[-3000:])
        answer = json.loads(content)
        return as_levels(answer["images"][0]), json.loads(answer["info"])["infotexts"][0]


def as_png(picture: np.ndarray) -> str:
    """A picture as the API takes it."""
    stream = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def as_levels(text: str) -> np.ndarray:
    """A picture that the API gave, as float32 levels of shape (H, W, 3)."""
    picture = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
    return np.asarray(picture, dtype=np.float32)
