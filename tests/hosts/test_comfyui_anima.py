"""In a real ComfyUI: Anima's transformer, text and LoRA are there what they are here.

ComfyUI takes heads, the text's width and the adapter as published, so the smallest checkpoint that
it loads holds an adapter of 135 million parameters. Needs COMFYUI_DIR, as test_comfyui.py.
"""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import lora_networks
import numpy as np
import pytest
import torch
from comfyui_files import ANIMA
from comfyui_server import FOLDER, host_python, needs_comfyui
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.core.diffusion.schedule import Levels, few_step_positions
from dpdmd_studio.core.families import anima as facts
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
from dpdmd_studio.trainer.families import anima
from dpdmd_studio.trainer.loading.checkpoint import LoadedCheckpoint, Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.loading.lora_merge import open_merging
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.text.cache import encode_prompts
from dpdmd_studio.trainer.text.tokenizers import qwen_ids, t5_chunk
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PROGRAM = Path(__file__).with_name("comfyui_anima_program.py")
pytestmark = needs_comfyui
ENCODER = {
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
PROMPTS = (
    "",
    "a cat",
    "a (red:1.3) fox, masterpiece, 2girls, it's raining 20260 drops\n at 日本 \\(style\\)",
    "one of many words " * 140,  # more than 512 of T5's tokens
)
# latent height, width, sigma, prompt: its number, or how many random rows of text it has
CASES = (
    (8, 8, 0.99, 0), (8, 12, 0.75, 1), (16, 6, 0.45, 2), (6, 20, 0.1, 3), (8, 8, 0.02, 1),
    (12, 8, 0.9, -3), (10, 10, 0.3, -200), (4, 24, 0.6, -512),
)  # fmt: skip
IMAGE = {
    "texts": ("a (red:1.3) fox", "blurry"), "seed": 11, "steps": 9, "cfg": 4.0,
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
    text_lora: Path

    def text_length(self, case: int) -> int:
        """Rows of text of a case that are not empty."""
        prompt = CASES[case][3]
        return self.text[prompt].context.shape[1] if prompt >= 0 else -prompt


def inputs_of_cases() -> dict[str, Tensor]:
    draw, made = torch.Generator().manual_seed(3), {}
    for number, (height, width, sigma, prompt) in enumerate(CASES):
        made[f"x.{number}"] = torch.randn(1, 16, height, width, generator=draw)
        made[f"sigma.{number}"] = torch.tensor([sigma])
        if prompt < 0:
            rows = torch.randn(1, -prompt, 1024, generator=draw)
            made[f"context.{number}"] = torch.nn.functional.pad(rows, (0, 0, 0, 512 + prompt))
        else:
            made[f"prompt.{number}"] = torch.tensor(prompt)
    return made


def lora_of_the_text(tiny: checkpoints.Tiny, path: Path) -> Path:
    """A LoRA that changes the encoder and the adapter, under every name that trainers write."""
    places = {
        "lora_te_layers_0_self_attn_q_proj": ("qwen3", "layers.0.self_attn.q_proj"),
        "text_encoders.qwen3_06b.transformer.model.layers.1.mlp.down_proj": (
            "qwen3", "layers.1.mlp.down_proj",
        ),
        "lora_unet_llm_adapter_blocks_0_cross_attn_k_proj": (
            "llm_adapter", "blocks.0.cross_attn.k_proj",
        ),
        "diffusion_model.llm_adapter.blocks.1.mlp.0": ("llm_adapter", "blocks.1.mlp.0"),
    }  # fmt: skip
    draw, made = torch.Generator().manual_seed(7), {}
    for name, (kind, module) in places.items():
        rows, columns = tiny.encoders[kind].get_submodule(module).weight.shape
        made[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=draw) / columns**0.5
        made[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=draw) / 4
        made[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(made, path)
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("anima")
    network = checkpoints.drawn(anima.AnimaTransformer(**ANIMA), 0)
    adapter = checkpoints.drawn(AnimaTextConditioner(min_sequence_length=0), 1)
    sizes = {**ENCODER, "head_dim": 128}
    encoders = {"qwen3": checkpoints.qwen3.__wrapped__(1024, **sizes), "llm_adapter": adapter}
    tiny = checkpoints.Tiny(network, encoders)
    denoiser, encoder = checkpoints.anima_files(folder, tiny)
    lora, config = folder / "lora.safetensors", dict(network.config)
    pairs = lora_networks.random_pairs(network, facts.FAMILY, config)
    write_lora(lora, NewLora(facts.FAMILY, config, pairs, default_recipe(facts.NAME, "flow")))
    vae = checkpoints.wan_names(checkpoints.wan_vae())
    vae["encoder.conv1.weight"] = torch.ones(8, 3, 3, 3, 3)  # the host looks at its shape
    checkpoints.save(folder / "vae.safetensors", vae)
    inputs = inputs_of_cases()
    save_file(inputs, folder / "inputs.safetensors")
    text_lora = lora_of_the_text(tiny, folder / "text.safetensors")
    job = {"denoiser": str(denoiser), "encoder": str(encoder), "lora": str(lora)}
    job["text_lora"] = str(text_lora)
    job["vae"] = str(folder / "vae.safetensors")
    job |= {"prompts": PROMPTS, "encoder_sizes": ENCODER, "image": IMAGE}
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
    return Both(theirs, warnings, opened.load(), text, inputs, lora, names, text_lora)


def predicted(both: Both, case: int, **change: Callable[[Tensor], Tensor]) -> Tensor:
    """Our velocity; `change` maps what the network is told, time or text, before it is called."""
    inputs, prompt = both.inputs, CASES[case][3]
    if prompt >= 0:
        text = both.text[prompt]
    else:
        rows = inputs[f"context.{case}"][:, :-prompt]
        text = Conditioning(rows, repeatable=False, masked=True)
    times = change.get("time", lambda value: value)(1000 * inputs[f"sigma.{case}"])
    with torch.no_grad():
        return both.ours.call()(inputs[f"x.{case}"], times, text)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one, in parts of the spread of what the host says."""
    return float((ours - theirs).abs().max() / theirs.std())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_one_forward_is_the_hosts(both, case):
    assert difference(predicted(both, case), both.theirs[f"plain.{case}"]) < WITHIN


@pytest.mark.parametrize("fault", ["sign", "time", "rope", "mask", "padding"])
@pytest.mark.parametrize("case", [1, 2, 5])
def test_a_planted_error_is_seen(both, case, fault, monkeypatch):
    theirs = both.theirs[f"plain.{case}"]
    right, network = difference(predicted(both, case), theirs), both.ours.network
    if fault == "rope":
        monkeypatch.setattr(network.rope, "h_ntk_factor", 1.0)
        monkeypatch.setattr(network.rope, "w_ntk_factor", 1.0)
    elif fault == "mask":  # empty rows of text are not seen
        monkeypatch.setattr(anima, "TOKENS", both.text_length(case))
    elif fault == "padding":  # all of the image is said to be padding
        pad = torch.nn.functional.pad
        patched = SimpleNamespace(pad=lambda x, sizes: pad(x, sizes, value=float(x.dim() == 5)))
        monkeypatch.setattr(anima, "functional", patched)
    change = {"time": lambda times: 1000 - times} if fault == "time" else {}
    found = predicted(both, case, **change) * (-1 if fault == "sign" else 1)
    assert difference(found, theirs) > PLANTED * right


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_a_prompt_says_there_what_it_says_here(both, number):
    theirs, prompt = both.theirs, PROMPTS[number]
    assert theirs[f"ids.{number}"].tolist() == qwen_ids(prompt)
    chunk = t5_chunk(prompt, 1)
    assert theirs[f"t5.{number}"].tolist() == list(chunk.ids)
    assert theirs[f"weights.{number}"].tolist() == pytest.approx(chunk.weights)
    rows = both.text[number].context
    expected = theirs[f"text.{number}"]
    assert not expected[:, rows.shape[1] :].any()
    assert difference(rows, expected[:, : rows.shape[1]]) < TEXT_WITHIN


def test_a_batch_of_prompts_says_what_each_says_alone(both):
    text = Conditioning.cat(both.text)
    x = torch.randn(len(text), 16, 6, 8, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([990.0, 700.0, 400.0, 100.0])
    call = both.ours.call()
    with torch.no_grad():
        together = call(x, times, text)
        alone = [call(x[i : i + 1], times[i : i + 1], item) for i, item in enumerate(both.text)]
    assert difference(together, torch.cat(alone)) < WITHIN


def test_latents_become_the_hosts_picture(both):
    """Within two levels of 255, as ours are rounded."""
    ours = torch.from_numpy(decode(both.ours, both.inputs["x.0"]))
    assert ours.float().std() > 20
    assert float((both.theirs["picture"].reshape(ours.shape) * 255 - ours).abs().max()) < 2.0


def test_the_teacher_draws_the_hosts_picture(both, tmp_path):
    """Euler on the simple schedule with guidance: within a level of 255, as ours are rounded."""
    prompt, negative = IMAGE["texts"]
    request = SampleRequest(
        model=both.files, prompts=(prompt,), negative=negative, seeds=(IMAGE["seed"],),
        steps=IMAGE["steps"], guidance_scale=IMAGE["cfg"], output=tmp_path, dtype="float32",
        resolution=f"{IMAGE['width']}x{IMAGE['height']}", device="cpu",
    )  # fmt: skip
    (path,) = sample_images(request)
    ours = torch.from_numpy(np.asarray(Image.open(path)).copy()).float()
    theirs = 255 * both.theirs["image"].reshape(ours.shape)
    assert ours.std() > 20
    assert float((theirs - ours).abs().max()) < 1.0


def test_the_hosts_simple_schedule_is_ours(both):
    levels = Levels.at_positions(both.ours.schedule, few_step_positions(4))
    torch.testing.assert_close(both.theirs["grid"], levels.sigmas.float(), rtol=1e-6, atol=1e-6)
    assert [round(value, 6) for value in both.theirs["grid"].tolist()] == [1, 0.9, 0.75, 0.5, 0]


def test_the_host_reads_every_key_of_a_lora(both):
    assert not both.warnings
    merged = replace(both.ours, network=copy.deepcopy(both.ours.network))
    config, network = merged.config, merged.network
    modules = facts.FAMILY.lora.modules(config, "full")
    assert int(both.theirs["patched"]) == len(modules) == 32
    deltas = lora_deltas(read_lora(both.lora), facts.FAMILY, config, parameter_shapes(network), 1.0)
    assert len(deltas) == len(modules)
    merge_lora(network, deltas)
    for case in range(len(CASES)):
        found = predicted(replace(both, ours=merged), case)
        assert difference(found, predicted(both, case)) > 1e-2
        assert difference(found, both.theirs[f"with_lora.{case}"]) < LORA_WITHIN


def test_a_lora_of_the_text_says_there_what_it_says_here(both, tmp_path):
    files = Overrides(
        text_encoders={"qwen3": Path(str(both.files.qwen))},
        loras=[open_merging(both.text_lora, 1.0)],
    )
    path = Path(both.files.checkpoint)
    opened = open_checkpoint(path, dtype=torch.float32, device="cpu", overrides=files)
    assert any(
        "2 layers of the Qwen3 text encoder, 2 layers of the text" in n for n in opened.notes
    )
    encoded = encode_prompts(opened, PROMPTS, cache_folder=tmp_path)
    for number, prompt in enumerate(PROMPTS):
        rows, plain = encoded[prompt].context, both.text[number].context
        theirs = both.theirs[f"text_with_lora.{number}"][:, : rows.shape[1]]
        assert difference(rows, theirs) < TEXT_WITHIN
        assert difference(plain, theirs) > 1e-2
