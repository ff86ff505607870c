"""A family registered from test files alone is distilled, sampled and written like our own."""

from __future__ import annotations

import json

import made_up_family as made_up
import numpy as np
import pytest
import torch
from dpdmd_studio import cli
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.core import families
from dpdmd_studio.core.diffusion.schedule import FlowSchedule, few_step_positions
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.families import identify
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.core.lora.file import lora_deltas, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.loading.decoding import vae_latents
from dpdmd_studio.trainer.memory.packed_base import store_base
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.text.cache import encode_prompts
from lora_networks import by_module
from PIL import Image
from safetensors.torch import load_file

RANK = 3
SETTINGS = (
    "--steps=2", "--batch-size=3", "--fake-updates=1", f"--student-rank={RANK}", "--fake-rank=2",
    "--teacher-steps=8", "--resolution=64x48", "--preview-every=1", "--student-lr=0.01",
    "--warmup-steps=1", "--device=cpu",
)  # fmt: skip
PROMPTS = ("a cat", "a much longer prompt about a red dog", "x", "two words")


@pytest.fixture(scope="module", autouse=True)
def known():
    """The family is known to all tests of this module."""
    with made_up.known():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny checkpoint."""
    return made_up.save(tmp_path_factory.mktemp("made-up") / "made.safetensors")


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """(LoRA, its run) of two updates by the command."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    lora, run = folder / "few.safetensors", folder / "run"
    words = ["distill", file, "--prompts", folder / "prompts.txt", "--output", lora, "--run", run]
    assert cli.main([str(word) for word in (*words, *SETTINGS)]) == 0
    return lora, run


def loaded(file):
    """The checkpoint in fp32."""
    return open_checkpoint(file, dtype=torch.float32, device="cpu").load()


def test_it_is_detected_with_its_encoder(file):
    found = identify(file)
    assert (found.family, found.prediction, found.latent_channels) == (made_up.NAME, "flow", 4)
    assert found.text_encoders == (made_up.LETTERS,) and found.vae == "kl"
    assert inspect(file, hashed=False)["family"] == made_up.NAME


def test_its_network_is_filled_from_the_fused_tensor_and_called_its_own_way(file):
    checkpoint = loaded(file)
    network = made_up.network()
    for name, value in network.state_dict().items():
        assert torch.equal(checkpoint.network.state_dict()[name], value), name
    x, text = torch.randn(2, 4, 5, 3), torch.randn(2, 7, made_up.TEXT_WIDTH)
    with torch.no_grad():
        found = checkpoint.call()(x, torch.tensor([250.0, 900.0]), Conditioning(text))
        expected = -network(x, torch.tensor([0.75, 0.1]), text, torch.tensor([7, 7]))
    torch.testing.assert_close(found, expected)


def test_its_prompts_of_unequal_length_make_one_exact_batch(file, tmp_path):
    checkpoint = loaded(file)
    texts = encode_prompts(checkpoint, PROMPTS, cache_folder=tmp_path)
    apart = [texts[prompt] for prompt in PROMPTS]
    assert [item.context.shape[1] for item in apart] == [len(text) + 1 for text in PROMPTS]
    assert apart[0].batches_exactly_with(apart[1]) and apart[0].pooled is None
    x, time = torch.randn(len(PROMPTS), 4, 5, 3), torch.full((len(PROMPTS),), 500.0)
    call = checkpoint.call()
    with torch.no_grad():
        together = call(x, time, Conditioning.cat(apart))
        for i, one in enumerate(apart):
            torch.testing.assert_close(together[i : i + 1], call(x[i : i + 1], time[:1], one))


def test_latents_have_statistics_by_channel(file):
    checkpoint = loaded(file)
    latents = torch.randn(2, 4, 3, 3)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (made_up.MEAN, made_up.DEVIATION))
    found = vae_latents(checkpoint, checkpoint.decoder, latents)
    torch.testing.assert_close(found, latents * deviation + mean)


def test_its_blocks_can_be_packed(file):
    network = loaded(file).network
    said = store_base(network, "int8", offload=False, device="cpu")
    assert said.startswith("8 layers stored, 8 packed as int8")


def test_two_updates_write_a_lora_with_its_recipe(trained):
    lora, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (run / "previews" / "step-00000002.png").exists()
    found = read_lora(lora)
    recipe = found.recipe
    assert recipe is not None and found.family == recipe.family == made_up.NAME
    assert recipe.shift == 6.0 and recipe.teacher_guidance_scale == 3.0
    grid = FlowSchedule(6.0).sigma_at(few_step_positions(4))
    assert recipe.sigmas == pytest.approx(grid.tolist())
    assert recipe.plain_host == "Euler, Simple, 4 steps, CFG 1"
    metadata = read_header(lora).metadata
    assert metadata["ss_base_model_version"] == "made_up_1"
    assert metadata["modelspec.architecture"] == "made-up/lora"
    assert "ss_clip_skip" not in metadata


def test_its_lora_is_fused_in_unequal_rows_and_reads_back_as_trained(trained, file):
    lora, run = trained
    shapes = {key: info.shape for key, info in read_header(lora).tensors.items()}
    assert shapes["lora_unet_blocks_1_attention_qkv.lora_up.weight"] == (64, 3 * RANK)
    assert shapes["lora_unet_blocks_1_attention_qkv.lora_down.weight"] == (3 * RANK, 16)
    assert shapes["lora_unet_blocks_0_attention_out.lora_up.weight"] == (16, RANK)
    checkpoint, found = loaded(file), read_lora(lora)
    sizes = parameter_shapes(checkpoint.network)
    pairs = by_module(lora_deltas(found, checkpoint.family, checkpoint.config, sizes))
    assert set(pairs) == set(checkpoint.family.lora.modules(checkpoint.config, "full"))
    (state,) = sorted((run / "state").glob("step-*/student.safetensors"))[-1:]
    kept = load_file(state)
    for module, pair in pairs.items():
        trained_delta = kept[f"{module}.lora_B"] @ kept[f"{module}.lora_A"]
        change = delta(pair, sizes[f"{module}.weight"])
        assert float(change.abs().max()) > 0
        torch.testing.assert_close(change, trained_delta, rtol=2e-2, atol=2e-3)


def test_pictures_are_drawn_with_its_lora(trained, file, tmp_path):
    lora, _ = trained
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    shared = [
        "sample",
        file,
        "--prompts",
        tmp_path / "prompts.txt",
        "--seeds",
        "3",
        "--device",
        "cpu",
    ]
    for name, more in (("with", ["--lora", lora]), ("without", ["--steps", "4"])):
        words = [*shared, *more, "--output", tmp_path / name, "--resolution", "64x48"]
        assert cli.main([str(word) for word in words]) == 0
    drawn = sorted((tmp_path / "with").glob("*.png"))
    assert len(drawn) == len(PROMPTS)
    changed = [
        np.array(Image.open(path)) != np.array(Image.open(tmp_path / "without" / path.name))
        for path in drawn
    ]
    assert all(difference.any() for difference in changed)


def test_without_its_facts_it_is_no_model_of_ours(file):
    families.FAMILIES.remove(made_up.FACTS)
    try:
        with pytest.raises(CheckpointError, match="no denoiser"):
            identify(file)
    finally:
        families.FAMILIES.insert(0, made_up.FACTS)
