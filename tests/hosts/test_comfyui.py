"""In a real ComfyUI: our files load, predict what they predict here, and leave no key behind.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import lora_networks
import pytest
import torch
from comfyui_files import TEACHER, UNETS, small_sd35_large, small_unet
from comfyui_server import FOLDER, host_python, needs_comfyui
from dpdmd_studio.core.diffusion.prediction import to_x0
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions
from dpdmd_studio.core.lora.file import (
    NewLora,
    lora_deltas,
    merge_lora,
    parameter_shapes,
    read_lora,
    write_lora,
)
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.toys import encoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PROGRAM = Path(__file__).with_name("comfyui_program.py")
CPU: dict = {"dtype": torch.float32, "device": "cpu"}
pytestmark = needs_comfyui


def in_comfyui(folder: Path, checkpoint: Path, lora: Path, inputs, decode: bool):
    """What ComfyUI makes of it: its tensors, and its complaints about the LoRA."""
    save_file({k: v.contiguous() for k, v in inputs.items()}, folder / "inputs.safetensors")
    job = {"checkpoint": str(checkpoint), "lora": str(lora), "decode": decode}
    job |= {name: str(folder / f"{name}.safetensors") for name in ("inputs", "outputs")}
    (folder / "job.json").write_text(json.dumps(job))
    command = [host_python(), str(PROGRAM), str(FOLDER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with safe_open(job["outputs"], "pt") as file:
        return load_file(job["outputs"]), json.loads(file.metadata()["warnings"])


def prepared(name: str, folder: Path) -> tuple[NetworkCall, Path, dict[str, torch.Tensor]]:
    """(network, its file, inputs without noise level) of a family."""
    draw = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    if name == "sd3":
        encoder.register()
        loaded = open_checkpoint(TEACHER, **CPU).load()
        inputs = {"x": randn(2, 16, 8, 8), "context": randn(2, 16, 4096), "pooled": randn(2, 2048)}
        return loaded.call(), TEACHER, inputs
    if name == "sd3, 3.5 large":
        call, path = small_sd35_large(folder)
        inputs = {"x": randn(2, 16, 8, 8), "context": randn(2, 90, 4096)}
        return call, path, inputs | {"pooled": randn(2, 2048)}
    call, path = small_unet(name, folder)
    inputs = {"x": randn(2, 4, 16, 16), "context": randn(2, 77, UNETS[name]["cross_attention_dim"])}
    return call, path, inputs | ({"pooled": randn(2, 1280)} if name == "sdxl" else {})


def denoised(call: NetworkCall, inputs: dict[str, torch.Tensor], level: Levels) -> torch.Tensor:
    """Our x0 for an input in the host's space (x0 + sigma eps for VP)."""
    alpha, std = level.broadcast_scales
    x_t = inputs["x"] * (alpha if call.family.sampling.schedule == "vp" else 1.0)
    condition = Conditioning(inputs["context"], inputs.get("pooled"))
    output = call(x_t, level.timesteps.expand(len(x_t)), condition)
    return to_x0(call.prediction, output, x_t, alpha, std)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "sd3, 3.5 large"])
def test_checkpoint_and_lora_mean_the_same_in_comfyui(name, tmp_path):
    call, path, inputs = prepared(name, tmp_path)
    levels = Levels.at_positions(call.schedule, few_step_positions(4))
    level = levels[torch.tensor([1])]
    inputs["sigma"] = level.sigmas.expand(2).float()
    config = dict(call.network.config)
    pairs = lora_networks.random_pairs(call.network, call.family, config)
    lora = tmp_path / "lora.safetensors"
    write_lora(lora, NewLora(call.family, config, pairs, lora_networks.RECIPES[call.family.name]))
    theirs, warnings = in_comfyui(tmp_path, path, lora, inputs, decode=name == "sd3")
    assert not warnings
    if name == "sd3":  # the embedded teacher's own VAE
        ours = torch.from_numpy(decode(open_checkpoint(TEACHER, **CPU).load(), inputs["x"]))
        assert float((theirs["picture"].reshape(ours.shape) * 255 - ours).abs().max()) < 2.0
    torch.testing.assert_close(theirs["grid"], levels.sigmas.float(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ours = denoised(call, inputs, level)
        deltas = lora_deltas(
            read_lora(lora), call.family, config, parameter_shapes(call.network), 1.0
        )
        assert len(deltas) == len(pairs)
        merge_lora(call.network, deltas)
        ours_with = denoised(call, inputs, level)
    change = float((ours_with - ours).abs().mean())
    assert change > 1e-3
    assert float((theirs["plain"] - ours).abs().max()) < 1e-2 * change
    assert float((theirs["with_lora"] - ours_with).abs().mean()) < 1e-2 * change
