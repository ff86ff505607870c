"""In a real ComfyUI: Z-Image's transformer, text, LoRA and pictures are there what they are here.

ComfyUI takes width, heads and the encoder's width as published, so the smallest checkpoint that it
loads holds 909 million parameters. Needs COMFYUI_DIR, as test_comfyui.py does, and 12 GB of memory.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import lora_networks
import numpy as np
import pytest
import torch
from comfyui_files import ZIMAGE, ZIMAGE_ENCODER, zimage_files
from comfyui_server import FOLDER, host_python, needs_comfyui
from diffusers.models.transformers.transformer_z_image import RopeEmbedder
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions
from dpdmd_studio.core.families import zimage as facts
from dpdmd_studio.core.lora.file import (
    NewLora,
    lora_deltas,
    merge_lora,
    parameter_shapes,
    read_lora,
    write_lora,
)
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.trainer.commands.sample import SampleRequest, sample_images
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint, Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.text import encoders
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.text.tokenizers import qwen_ids
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PROGRAM = Path(__file__).with_name("comfyui_zimage_program.py")
pytestmark = needs_comfyui
PROMPTS = (
    "",
    "a cat",
    "a (red:1.3) fox, [masterpiece], it's 20260 drops\n at 日本 \\(style\\) {x} \\[y\\]",
    "one of many words " * 20,
)
# latent height, width, sigma, prompt: its number, or how many random rows of text it has
CASES = (
    (8, 8, 0.99, 0), (8, 12, 0.75, 1), (10, 6, 0.45, 2), (6, 20, 0.1, -33), (12, 8, 0.9, -3),
    (4, 24, 0.02, 1),
)  # fmt: skip
WITH_LORA = (1, 4)
"""Cases that are asked of a model with a LoRA, too."""
IMAGE = {
    "texts": ("a (red:1.3) fox", "blurry"), "seed": 11, "steps": 5, "cfg": 4.0,
    "width": 96, "height": 64,
}  # fmt: skip
WITHIN, TEXT_WITHIN, LORA_WITHIN, PLANTED = 1e-4, 1e-3, 1e-3, 100.0


@dataclass(frozen=True)
class Both:
    """What the host said, and our checkpoint with the same inputs."""

    theirs: dict[str, Tensor]
    warnings: list[str]
    ours: LoadedCheckpoint
    text: list[Conditioning]
    inputs: dict[str, Tensor]
    lora: Path
    files: ModelFiles
    found: dict[int, float] = field(default_factory=dict)

    def difference(self, case: int) -> float:
        """Of one forward, which is made once."""
        if case not in self.found:
            self.found[case] = difference(predicted(self, case), self.theirs[f"plain.{case}"])
        return self.found[case]


def inputs_of_cases() -> dict[str, Tensor]:
    draw, made = torch.Generator().manual_seed(3), {}
    for number, (height, width, sigma, prompt) in enumerate(CASES):
        made[f"x.{number}"] = torch.randn(1, 16, height, width, generator=draw)
        made[f"sigma.{number}"] = torch.tensor([sigma])
        if prompt < 0:
            made[f"context.{number}"] = torch.randn(
                1, -prompt, ZIMAGE["cap_feat_dim"], generator=draw
            )
        else:
            made[f"prompt.{number}"] = torch.tensor(prompt)
    return made


def loras(network: nn.Module, folder: Path) -> dict[str, Path]:
    """The same weights by our own file, and by one whose q, k and v are fused as checkpoints'."""
    config = dict(network.config)
    pairs = lora_networks.random_pairs(network, facts.FAMILY, config)
    recipe = default_recipe(facts.NAME, "flow")
    own = write_lora(folder / "own.safetensors", NewLora(facts.FAMILY, config, pairs, recipe))
    state = load_file(own)
    place = "diffusion_model.layers.0.attention."
    parts = [[state.pop(f"{place}to_{p}.lora_{h}.weight") for p in "qkv"] for h in "AB"]
    state[f"{place}qkv.lora_A.weight"] = torch.cat(parts[0])
    state[f"{place}qkv.lora_B.weight"] = torch.block_diag(*parts[1])
    state = {name.replace(".to_out.0.", ".out."): value for name, value in state.items()}
    save_file(state, folder / "fused.safetensors")
    return {"own": own, "fused": folder / "fused.safetensors"}


def make_files(folder: Path) -> dict[str, Path]:
    """The model's files and the LoRAs, by name."""
    network, made = zimage_files(folder)
    return made | loras(network, folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("zimage")
    made = make_files(folder)
    gc.collect()
    denoiser, encoder = made["denoiser"], made["encoder"]
    inputs = inputs_of_cases()
    save_file(inputs, folder / "inputs.safetensors")
    job: dict = {name: str(made[name]) for name in ("denoiser", "encoder", "vae")}
    job["loras"] = {name: str(made[name]) for name in ("own", "fused")}
    job |= {
        "prompts": PROMPTS,
        "encoder_sizes": ZIMAGE_ENCODER,
        "image": IMAGE,
        "with_lora": WITH_LORA,
    }
    job |= {name: str(folder / f"{name}.safetensors") for name in ("inputs", "outputs")}
    (folder / "job.json").write_text(json.dumps(job))
    command = [host_python(), str(PROGRAM), str(FOLDER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with safe_open(job["outputs"], "pt") as file:
        warnings = json.loads(file.metadata()["warnings"])
    files = Overrides(text_encoders={"qwen3": encoder}, vae=Path(job["vae"]))
    opened = open_checkpoint(denoiser, dtype=torch.float32, device="cpu", overrides=files)
    encoded = encode_prompts(opened, PROMPTS, cache_folder=folder / "cache")
    text = [encoded[prompt] for prompt in PROMPTS]
    names = ModelFiles(checkpoint=str(denoiser), qwen=str(encoder), vae=job["vae"])
    theirs = load_file(job["outputs"])
    return Both(theirs, warnings, opened.load(), text, inputs, made["own"], names)


def predicted(both: Both, case: int, times: Tensor | None = None) -> Tensor:
    """Our velocity."""
    inputs, prompt = both.inputs, CASES[case][3]
    rows = both.text[prompt].context if prompt >= 0 else inputs[f"context.{case}"]
    text = Conditioning(rows, repeatable=False, masked=True)
    times = 1000 * inputs[f"sigma.{case}"] if times is None else times
    with torch.no_grad():
        return both.ours.call()(inputs[f"x.{case}"], times, text)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one, in parts of the spread of what the host says."""
    return float((ours - theirs).abs().max() / theirs.std())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_one_forward_is_the_hosts(both, case):
    assert both.difference(case) < WITHIN


class _SwappedAxes(RopeEmbedder):
    """Positions with rows for columns."""

    def __call__(self, ids: Tensor) -> Tensor:
        return super().__call__(ids[:, [0, 2, 1]])


@pytest.mark.parametrize("fault", ["sign", "time", "rope", "mask"])
@pytest.mark.parametrize("case", [1, 4])
def test_a_planted_error_is_seen(both, case, fault, monkeypatch):
    theirs = both.theirs[f"plain.{case}"]
    right, network = both.difference(case), both.ours.network
    times = None
    if fault == "time":
        times = 1000 * (1 - both.inputs[f"sigma.{case}"])
    elif fault == "rope":
        rope = network.rope_embedder
        swapped = _SwappedAxes(rope.theta, rope.axes_dims, rope.axes_lens)
        monkeypatch.setattr(network, "rope_embedder", swapped)
    elif fault == "mask":  # tokens of padding are left as copies of the last one
        pad = network._pad_with_ids

        def copied(*given):
            features, ids, mask, length, noise = pad(*given)
            return features, ids, torch.zeros_like(mask), length, noise

        monkeypatch.setattr(network, "_pad_with_ids", copied)
    found = predicted(both, case, times) * (-1 if fault == "sign" else 1)
    assert difference(found, theirs) > PLANTED * right


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_prompt_says_there_what_it_says_here(both, number):
    theirs, prompt = both.theirs, PROMPTS[number]
    assert theirs[f"ids.{number}"].tolist() == qwen_ids(prompt, facts.FAMILY.text.template)
    rows, expected = both.text[number].context, theirs[f"text.{number}"]
    assert rows.shape == expected.shape
    assert difference(rows, expected) < TEXT_WITHIN


def test_a_batch_of_prompts_says_what_each_says_alone(both):
    text = Conditioning.cat(both.text)
    x = torch.randn(len(text), 16, 6, 8, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([990.0, 700.0, 400.0, 100.0])
    call = both.ours.call()
    with torch.no_grad():
        together = call(x, times, text)
        alone = [call(x[i : i + 1], times[i : i + 1], item) for i, item in enumerate(both.text)]
    assert difference(together, torch.cat(alone)) < WITHIN


def levels_apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in levels of 255, of pictures with contrast."""
    assert ours.float().std() > 20
    return float((theirs.reshape(ours.shape) * 255 - ours).abs().max())


def test_latents_become_the_hosts_picture(both):
    """Within two levels of 255, as ours are rounded."""
    ours = torch.from_numpy(decode(both.ours, both.inputs["x.0"]))
    assert levels_apart(ours, both.theirs["picture"]) < 2.0


def drawn(both: Both, folder: Path, **how) -> Tensor:
    """The picture that `sample` draws."""
    prompt, negative = IMAGE["texts"]
    request = SampleRequest(
        model=both.files, prompts=(prompt,), negative=negative, seeds=(IMAGE["seed"],),
        output=folder, dtype="float32", device="cpu",
        resolution=f"{IMAGE['width']}x{IMAGE['height']}", **how,
    )  # fmt: skip
    (path,) = sample_images(request)
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).float()


def test_the_teacher_draws_the_hosts_picture(both, tmp_path, monkeypatch):
    """Euler on the simple schedule with guidance: within a level of 255, as ours are rounded."""
    monkeypatch.setattr(encoders, "HALF_WIDTH", math.inf)
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "home"))
    how = {"steps": IMAGE["steps"], "guidance_scale": IMAGE["cfg"]}
    assert levels_apart(drawn(both, tmp_path, **how), both.theirs["image"]) < 1.0


def test_our_lora_draws_the_hosts_picture(both, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "HALF_WIDTH", math.inf)
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "home"))
    ours = drawn(both, tmp_path, lora=(str(both.lora), 1.0))
    assert levels_apart(ours, both.theirs["image.own"]) < 1.0


def test_the_hosts_simple_schedule_is_ours(both):
    levels = Levels.at_positions(both.ours.schedule, few_step_positions(4))
    torch.testing.assert_close(both.theirs["grid"], levels.sigmas.float(), rtol=1e-6, atol=1e-6)
    assert [round(value, 6) for value in both.theirs["grid"].tolist()] == [1, 0.9, 0.75, 0.5, 0]


def test_the_host_reads_every_key_of_a_lora(both):
    """Last: it changes the network. Of the fused file the host patches three parts of one key."""
    assert not both.warnings
    config, network = both.ours.config, both.ours.network
    modules = facts.FAMILY.lora.modules(config, "full")
    assert int(both.theirs["patched.own"]) >= 6  # q, k and v are patches of one weight
    assert int(both.theirs["patched.fused"]) == 6
    deltas = lora_deltas(read_lora(both.lora), facts.FAMILY, config, parameter_shapes(network), 1.0)
    assert len(deltas) == len(modules) == 8
    plain = {case: predicted(both, case) for case in WITH_LORA}
    merge_lora(network, deltas)
    for case, before in plain.items():
        found = predicted(both, case)
        assert difference(found, before) > 1e-2
        for name in ("own", "fused"):
            assert difference(found, both.theirs[f"{name}.{case}"]) < LORA_WITHIN
