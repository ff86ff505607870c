"""Anima on tiny files in the real layout: detected, loaded, told of prompts, distilled, drawn.

What a real ComfyUI makes of the same layout is held in tests/hosts/test_comfyui_anima.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from dpdmd_studio import cli
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.core.errors import CheckpointError, UnsupportedModelError
from dpdmd_studio.core.families import anima as facts
from dpdmd_studio.core.families import check_files, identify
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.core.lora.file import lora_deltas, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from dpdmd_studio.trainer.families import anima
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.memory.packed_base import store_base
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.text.cache import encode_prompts, estimate_cache_bytes
from dpdmd_studio.trainer.text.tokenizers import qwen_ids, qwen_tokenizer, t5_chunk
from lora_networks import by_module
from PIL import Image
from safetensors.torch import load_file

RANK = 3
SETTINGS = (
    "--steps=2", "--batch-size=3", "--fake-updates=1", f"--student-rank={RANK}", "--fake-rank=2",
    "--teacher-steps=8", "--resolution=64x48", "--preview-every=1", "--student-lr=0.01",
    "--warmup-steps=1", "--device=cpu",
)  # fmt: skip
PROMPTS = ("a cat", "a much longer (prompt:1.3) about a red dog", "x", "")
CPU: dict = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the parts as they are published, a file each, and one file of all."""
    folder = checkpoints.anima_folder(tmp_path_factory.mktemp("anima"))
    (folder / "prompts.txt").write_text("\n".join(filter(None, PROMPTS)))
    return folder


def beside(folder: Path) -> Overrides:
    """The files that complete the transformer's."""
    encoder, vae = folder / "qwen_3_06b_base.safetensors", folder / "vae.safetensors"
    return Overrides(text_encoders={"qwen3": encoder}, vae=vae)


def opened(folder: Path):
    return open_checkpoint(folder / "anima.safetensors", **CPU, overrides=beside(folder))


@pytest.fixture(scope="module")
def trained(folder) -> tuple[Path, Path]:
    """(LoRA, its run) of two updates by the command."""
    lora, run = folder / "few.safetensors", folder / "run"
    words = ["distill", folder / "anima.safetensors", "--prompts", folder / "prompts.txt",
             "--qwen", folder / "qwen_3_06b_base.safetensors", "--vae", folder / "vae.safetensors",
             "--output", lora, "--run", run]  # fmt: skip
    assert cli.main([str(word) for word in (*words, *SETTINGS)]) == 0
    return lora, run


@pytest.mark.parametrize(
    ("name", "prefix", "encoders", "vae"),
    [
        ("anima", "net.", ("llm_adapter",), None),
        ("whole", "model.diffusion_model.", ("qwen3", "llm_adapter"), "wan"),
    ],
)
def test_it_is_detected_with_what_it_brings(folder, name, prefix, encoders, vae):
    found = identify(folder / f"{name}.safetensors")
    assert (found.family, found.prediction, found.latent_channels) == (facts.NAME, "flow", 16)
    assert (found.denoiser_prefix, found.text_encoders, found.vae) == (prefix, encoders, vae)
    assert found.resolution_multiple == 16
    assert inspect(folder / f"{name}.safetensors", hashed=False)["family"] == facts.NAME


@pytest.mark.parametrize("prefix", ["", "net.", "model.model.", "diffusion_model."])
def test_it_is_found_under_every_prefix(folder, prefix, tmp_path):
    state = load_file(folder / "anima.safetensors")
    named = {prefix + name.removeprefix("net."): value for name, value in state.items()}
    path = checkpoints.save(tmp_path / "other.safetensors", named)
    found = check_files(path, {"qwen3": folder / "qwen_3_06b_base.safetensors"})
    assert (found.denoiser_prefix, found.text_encoders) == (prefix, ("llm_adapter",))


def test_every_parameter_is_filled_and_nothing_is_left(folder):
    tiny = checkpoints.anima()
    whole = open_checkpoint(folder / "whole.safetensors", **CPU)
    for checkpoint in (whole, opened(folder)):
        assert not any("unknown tensors" in note for note in checkpoint.notes)
        assert any("Wan" in note for note in checkpoint.notes)
        parts = {"denoiser": (checkpoint.denoiser, tiny.denoiser)}
        parts |= {k: (c, tiny.encoders[k]) for k, c in checkpoint.encoders.items()}
        assert list(parts) == ["denoiser", "qwen3", "llm_adapter"]
        for component, expected in parts.values():
            loaded = component.load(torch.float32, "cpu").state_dict()
            assert loaded.keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(loaded[name], value), name


def test_the_header_alone_knows_every_parameter():
    network = checkpoints.anima().denoiser
    listed = dict(facts.FAMILY.layout.parameters(dict(network.config)))
    assert listed == {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net.blocks.1.mlp.layer2.weight", "transformer lacks 1 tensor it must have"),
        ("net.llm_adapter.blocks.0.mlp.2.bias", "text adapter lacks 1 tensor it must have"),
        ("net.llm_adapter.embed.weight", "has no text adapter"),
        ("net.llm_adapter.blocks.0.cross_attn.q_proj.weight", "is Cosmos-Predict2"),
    ],
)
def test_a_missing_tensor_is_named(folder, name, said, tmp_path):
    state = load_file(folder / "anima.safetensors")
    del state[name]
    path = checkpoints.save(tmp_path / "less.safetensors", state)
    with pytest.raises(CheckpointError, match=said):
        check_files(path, {"qwen3": folder / "qwen_3_06b_base.safetensors"})


def test_what_does_not_belong_to_it_is_refused(folder, tmp_path):
    path, encoder = folder / "anima.safetensors", folder / "qwen_3_06b_base.safetensors"
    with pytest.raises(CheckpointError, match=r"no Qwen3 text encoder.*give --qwen FILE"):
        check_files(path, {})
    t5 = {f"{n}": v for n, v in checkpoints.t5().state_dict().items()}
    checkpoints.save(tmp_path / "t5.safetensors", t5)
    with pytest.raises(
        CheckpointError, match=r"t5.safetensors holds another language model.*--qwen"
    ):
        check_files(path, {"qwen3": tmp_path / "t5.safetensors"})
    wide = {f"model.{n}": v for n, v in checkpoints.qwen3(64).state_dict().items()}
    checkpoints.save(tmp_path / "wide.safetensors", wide)
    with pytest.raises(CheckpointError, match=r"Qwen3 text encoder 64, text adapter 64 \(reads 32"):
        check_files(path, {"qwen3": tmp_path / "wide.safetensors"})
    kl = checkpoints.vae_names(checkpoints.kl_vae(16, quant_conv=False))
    checkpoints.save(tmp_path / "kl.safetensors", kl)
    with pytest.raises(CheckpointError, match=r"is a KL VAE, but .* those of Wan's VAE"):
        check_files(path, {"qwen3": encoder}, tmp_path / "kl.safetensors")
    state = load_file(path)
    state["net.x_embedder.proj.1.weight"] = torch.ones(96, 72)
    checkpoints.save(tmp_path / "video.safetensors", state)
    with pytest.raises(UnsupportedModelError, match="17 input channels"):
        identify(tmp_path / "video.safetensors")


def test_its_tokens_are_those_of_both_vocabularies():
    assert qwen_ids("a cat") == [64, 8251] and qwen_ids("") == [151643]
    assert qwen_ids("a (cat:1.3)") == [64, 220, 4616]  # each stretch of one weight by itself
    assert qwen_tokenizer().get_vocab_size() == 151669
    assert qwen_tokenizer().token_to_id("<|im_end|>") == 151645
    assert t5_chunk("a cat", 1).ids == (3, 9, 1712, 1) and t5_chunk("", 1).ids == (1,)


def test_prompts_of_unequal_length_make_one_exact_batch(folder, tmp_path):
    checkpoint = opened(folder)
    prompts = (*PROMPTS, "many words " * 300)  # more rows than all have at least
    texts = encode_prompts(checkpoint, prompts, cache_folder=tmp_path)
    apart = [texts[prompt] for prompt in prompts]
    lengths = [item.context.shape[1] for item in apart]
    assert lengths == [len(t5_chunk(text, 1).ids) for text in prompts] and lengths[-1] > 512
    size = sum(item.num_bytes for item in apart)
    assert estimate_cache_bytes(checkpoint, prompts) == size
    call = checkpoint.load().call()
    x, time = torch.randn(len(prompts), 16, 6, 4), torch.full((len(prompts),), 500.0)
    with torch.no_grad():
        together = call(x, time, Conditioning.cat(apart))
        for i, one in enumerate(apart):
            torch.testing.assert_close(
                together[i : i + 1], call(x[i : i + 1], time[:1], one), rtol=1e-4, atol=1e-4
            )


def test_a_prompts_weight_multiplies_its_rows(folder, tmp_path):
    texts = encode_prompts(opened(folder), ("(cat:1.0)", "(cat:1.5)"), cache_folder=tmp_path)
    plain, heavy = (texts[name].context for name in ("(cat:1.0)", "(cat:1.5)"))
    torch.testing.assert_close(heavy[:, :-1], 1.5 * plain[:, :-1])
    torch.testing.assert_close(heavy[:, -1:], plain[:, -1:])  # the end weighs 1


def test_the_network_is_told_sigma_and_empty_rows(folder):
    checkpoint = opened(folder).load()
    x, text = torch.randn(2, 16, 8, 6), torch.randn(2, 7, 64)
    with torch.no_grad():
        found = checkpoint.call()(x, torch.tensor([250.0, 900.0]), Conditioning(text))
        frame = torch.cat([x, torch.zeros(2, 1, 8, 6)], dim=1)[:, :, None]
        rows = torch.cat([text, torch.zeros(2, 505, 64)], dim=1)
        expected = checkpoint.network(frame, torch.tensor([0.25, 0.9]), rows).sample[:, :, 0]
    torch.testing.assert_close(found, expected)


def test_latents_are_decoded_by_its_own_vae(folder):
    checkpoint = opened(folder).load()
    latents = torch.randn(2, 16, 4, 6)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (facts.MEAN, facts.DEVIATION))
    with torch.no_grad():
        rgb = checkpoints.wan_vae()(latents * deviation + mean)
    expected = (rgb.clamp(-1, 1) + 1) * 127.5
    found = torch.from_numpy(decode(checkpoint, latents)).permute(0, 3, 1, 2)
    assert found.shape == (2, 3, 32, 48) and expected.std() > 1
    assert (found - expected).abs().max() <= 0.51


def test_its_blocks_can_be_packed(folder):
    network = opened(folder).load().network
    said = store_base(network, "int8", offload=False, device="cpu")
    assert said.startswith("32 layers stored, 32 packed as int8")


def test_two_updates_write_a_lora_with_its_recipe(trained):
    lora, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (run / "previews" / "step-00000002.png").exists()
    found = read_lora(lora)
    recipe = found.recipe
    assert recipe is not None and found.family == recipe.family == facts.NAME
    assert recipe.shift == 3.0 and recipe.teacher_guidance_scale == 4.0
    assert recipe.sigmas == pytest.approx((1, 0.9, 0.75, 0.5, 0))
    assert recipe.plain_host == "Euler, Simple, 4 steps, CFG 1"
    assert read_header(lora).metadata["modelspec.architecture"] == "anima/lora"


def test_its_lora_has_names_that_all_hosts_read_and_reads_back_as_trained(trained, folder):
    lora, run = trained
    shapes = {key: info.shape for key, info in read_header(lora).tensors.items()}
    first = "diffusion_model.blocks.0."
    assert shapes[f"{first}self_attn.q_proj.lora_A.weight"] == (RANK, 96)
    assert shapes[f"{first}self_attn.output_proj.lora_B.weight"] == (96, RANK)
    assert shapes[f"{first}cross_attn.k_proj.lora_A.weight"] == (RANK, 64)
    assert shapes["diffusion_model.blocks.1.mlp.layer1.lora_B.weight"] == (384, RANK)
    assert shapes["diffusion_model.blocks.1.mlp.layer2.lora_A.weight"] == (RANK, 384)
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in shapes)
    checkpoint, found = opened(folder).load(), read_lora(lora)
    sizes = parameter_shapes(checkpoint.network)
    pairs = by_module(lora_deltas(found, checkpoint.family, checkpoint.config, sizes))
    assert set(pairs) == set(checkpoint.family.lora.modules(checkpoint.config, "full"))
    assert len(shapes) == 2 * len(pairs)
    kept = load_file(sorted((run / "state").glob("step-*/student.safetensors"))[-1])
    for module, pair in pairs.items():
        trained_delta = kept[f"{module}.lora_B"] @ kept[f"{module}.lora_A"]
        change = delta(pair, sizes[f"{module}.weight"])
        assert float(change.abs().max()) > 0
        torch.testing.assert_close(change, trained_delta, rtol=2e-2, atol=2e-3)


def test_pictures_are_drawn_with_its_lora(trained, folder, tmp_path):
    lora, _ = trained
    shared = ["sample", folder / "whole.safetensors", "--prompts", folder / "prompts.txt",
              "--seeds", "3", "--device", "cpu", "--resolution", "64x48"]  # fmt: skip
    for name, more in (("with", ["--lora", lora]), ("without", ["--steps", "4"])):
        words = [*shared, *more, "--output", tmp_path / name]
        assert cli.main([str(word) for word in words]) == 0
    drawn = sorted((tmp_path / "with").glob("*.png"))
    assert len(drawn) == 3
    for path in drawn:
        without = np.array(Image.open(tmp_path / "without" / path.name))
        assert (np.array(Image.open(path)) != without).any()


def test_the_transformers_norms_and_positions_are_animas():
    network = checkpoints.anima().denoiser
    norms = [m for m in network.modules() if type(m).__name__ == "RMSNorm"]
    assert len(norms) == 1 + 2 * 4 and {norm.eps for norm in norms} == {1e-6}
    assert network.rope.h_ntk_factor == network.rope.w_ntk_factor == pytest.approx(4 ** (8 / 6))
    assert network.rope.t_ntk_factor == 1 and isinstance(network, anima.AnimaTransformer)
