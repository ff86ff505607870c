"""A real ComfyUI accepts the workflow of a package. Needs COMFYUI_DIR, as test_comfyui.py does."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

from comfyui_server import FOLDER, host_python, needs_comfyui
from dpdmd_studio.app.share.workflow import workflow
from share_packages import anima_facts, facts, recipe

PROGRAM = Path(__file__).with_name("comfyui_workflow_program.py")
pytestmark = needs_comfyui
ENCODERS = ("l.safetensors", "g.safetensors", "t5.safetensors")


def in_comfyui(folder: Path, workflows: list[str]) -> list[dict]:
    job = {
        "workflows": [],
        "models": str(folder / "models"),
        "verdicts": str(folder / "verdicts.json"),
        "files": {
            "checkpoints": ["base.safetensors"],
            "loras": ["few.safetensors", "style.safetensors"],
            "text_encoders": [*ENCODERS, "qwen_3_06b_base.safetensors"],
            "vae": ["v.safetensors", "qwen_image_vae.safetensors"],
            "diffusion_models": ["anima.safetensors"],
        },
    }
    for number, text in enumerate(workflows):
        (folder / f"{number}.json").write_text(text, encoding="utf-8")
        job["workflows"].append(str(folder / f"{number}.json"))
    (folder / "job.json").write_text(json.dumps(job))
    command = [host_python(), str(PROGRAM), str(FOLDER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))


def variants() -> list:
    """Every node that a workflow can have."""
    plain = [facts(family) for family in ("sd1", "sdxl", "sd3")]
    sd1, sdxl, sd3 = plain

    def with_files(given, count: int):
        checkpoint = dataclasses.replace(
            given.checkpoint, text_encoders=ENCODERS[:count], vae="v.safetensors"
        )
        return dataclasses.replace(given, checkpoint=checkpoint)

    v = recipe("sdxl", prediction="v", zero_terminal_snr=True)
    styled = dataclasses.replace(sdxl, recipe=v, with_loras=(("style.safetensors", 0.8),))
    others = [with_files(sd1, 1), with_files(styled, 2), with_files(sd3, 3)]
    return [*plain, *others, anima_facts()]


def test_every_workflow_is_accepted_and_a_wrong_one_is_not(tmp_path):
    texts = [workflow(given) for given in variants()]
    wrong = json.loads(texts[0])
    sampler = next(node for node in wrong["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"][4] = "no such sampler"
    elsewhere = workflow(anima_facts(denoiser="base.safetensors"))  # a checkpoint, not a bare model
    *good, bad, no_model = in_comfyui(tmp_path, [*texts, json.dumps(wrong), elsewhere])
    for verdict in good:
        assert verdict["good"] and not verdict["error"] and not verdict["nodes"], verdict
        assert verdict["outputs"] == 1
    assert not bad["good"] and "no such sampler" in json.dumps(bad["nodes"])
    assert not no_model["good"] and "base.safetensors" in json.dumps(no_model["nodes"])
