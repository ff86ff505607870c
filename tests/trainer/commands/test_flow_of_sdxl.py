"""A rectified flow of SDXL from end to end: checkpoint, distillation, LoRA, picture."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.cli import main
from dpdmd_studio.core.diffusion.schedule import FlowSchedule
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands.sample import SampleRequest, load_for_images
from dpdmd_studio.trainer.evaluation.sampling import initial_noise
from dpdmd_studio.trainer.loading.checkpoint import apply_lora
from dpdmd_studio.trainer.loading.decoding import decode
from PIL import Image
from tiny_runs import PROMPTS, distil, new_run

pytestmark = pytest.mark.usefixtures("home")
SHIFT = 2.0


def test_it_is_distilled_sampled_and_said(files, tmp_path):
    run = new_run(
        tmp_path, files["sdxl"], prediction="flow", shift=SHIFT, ema_decay=0.0, steps=2
    )  # fmt: skip
    outcome = distil(run)
    recipe = read_lora(outcome.lora).recipe
    levels = [SHIFT * u / (1 + (SHIFT - 1) * u) for u in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert (recipe.family, recipe.prediction, recipe.shift) == ("sdxl", "flow", SHIFT)
    assert recipe.sigmas == pytest.approx(levels)
    assert recipe.timesteps == pytest.approx([1000 * level for level in levels[:-1]])
    assert not recipe.zero_terminal_snr and "shift 2 as a rectified flow" in recipe.plain_host
    metadata = read_header(outcome.lora).metadata
    assert metadata["modelspec.prediction_type"] == "flow"
    assert "ModelSamplingSD3" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["dpdmd.settings"])["shift"] == SHIFT

    # neither the checkpoint nor the command says that it is a flow: the LoRA does
    command = ["sample", str(files["sdxl"]), "--prompt", PROMPTS[0], "--seeds", "3"]
    command += ["--lora", str(outcome.lora), "--output", str(tmp_path / "pictures")]
    assert main([*command, "--dtype", "float32"]) == 0
    (picture,) = (tmp_path / "pictures").glob("*.png")
    request = SampleRequest(
        model=ModelFiles(checkpoint=str(files["sdxl"])), prompts=(), seeds=(), output=tmp_path,
        dtype="float32",
    )  # fmt: skip
    checkpoint, *_ = load_for_images(
        request, recipe, [], torch.device("cpu"), lambda opened: (None, outcome.session.negative)
    )
    assert checkpoint.schedule == FlowSchedule(SHIFT)
    apply_lora(checkpoint, read_lora(outcome.lora), 1.0)
    call, prompt = checkpoint.call(), outcome.session.encoded[PROMPTS[0]]
    x = initial_noise(3, (4, 4, 4))[None]
    with torch.no_grad():
        for here, there in itertools.pairwise(levels):
            x = x + (there - here) * call(x, torch.tensor([1000 * here]), prompt)
    drawn = decode(checkpoint, x)[0].astype(np.float32)
    found = np.asarray(Image.open(picture), dtype=np.float32)
    assert np.abs(found - drawn).max() <= 1


def test_a_shift_for_what_is_no_flow_is_refused_before_anything_is_made(files, tmp_path):
    with pytest.raises(SettingsError, match=r"shift is for rectified flows.*--prediction flow"):
        new_run(tmp_path, files["sdxl"], shift=SHIFT)
    with pytest.raises(SettingsError, match=r"cannot predict 'flow'; allowed: eps, v"):
        new_run(tmp_path, files["sd1"], prediction="flow")
    assert not (tmp_path / "run").exists()
