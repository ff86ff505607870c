"""Z-Image on tiny files in the real layout: detected, loaded, told of prompts, distilled, drawn.

What a real ComfyUI makes of the same layout is held in tests/hosts/test_comfyui_zimage.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from dpdmd_studio import cli
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.core.errors import CheckpointError, UnsupportedModelError
from dpdmd_studio.core.families import check_files, identify
from dpdmd_studio.core.families import zimage as facts
from dpdmd_studio.core.files.tensor_file import read_header
from dpdmd_studio.core.lora.file import lora_deltas, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.decoding import decode
from dpdmd_studio.trainer.memory.packed_base import store_base
from dpdmd_studio.trainer.model.conditioning import Conditioning
from dpdmd_studio.trainer.text.cache import encode_prompts, estimate_cache_bytes
from dpdmd_studio.trainer.text.tokenizers import qwen_ids
from lora_networks import by_module
from PIL import Image
from safetensors.torch import load_file, save_file

RANK = 3
SETTINGS = (
    "--steps=2", "--batch-size=3", "--fake-updates=1", f"--student-rank={RANK}", "--fake-rank=2",
    "--teacher-steps=8", "--resolution=64x48", "--preview-every=1", "--student-lr=0.01",
    "--warmup-steps=1", "--device=cpu",
)  # fmt: skip
PROMPTS = ("a cat", "a much longer (prompt:1.3) about a red dog", "x", "")
CPU: dict = {"dtype": torch.float32, "device": "cpu"}
MODULES = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
           "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
           "adaLN_modulation.0")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the parts as they are published, a file each, and one file of all."""
    folder = checkpoints.zimage_folder(tmp_path_factory.mktemp("zimage"))
    (folder / "prompts.txt").write_text("\n".join(filter(None, PROMPTS)))
    return folder


def opened(folder: Path):
    """With the files that complete the transformer's."""
    encoder, vae = folder / "qwen_3_4b.safetensors", folder / "ae.safetensors"
    beside = Overrides(text_encoders={"qwen3": encoder}, vae=vae)
    return open_checkpoint(folder / "z_image.safetensors", **CPU, overrides=beside)


@pytest.fixture(scope="module")
def trained(folder) -> tuple[Path, Path]:
    """(LoRA, its run) of two updates by the command."""
    lora, run = folder / "few.safetensors", folder / "run"
    words = ["distill", folder / "z_image.safetensors", "--prompts", folder / "prompts.txt",
             "--qwen", folder / "qwen_3_4b.safetensors", "--vae", folder / "ae.safetensors",
             "--output", lora, "--run", run]  # fmt: skip
    assert cli.main([str(word) for word in (*words, *SETTINGS)]) == 0
    return lora, run


@pytest.mark.parametrize(
    ("name", "prefix", "encoders", "vae"),
    [("z_image", "", (), None), ("whole", "model.diffusion_model.", ("qwen3",), "kl")],
)
def test_it_is_detected_with_what_it_brings(folder, name, prefix, encoders, vae):
    found = identify(folder / f"{name}.safetensors")
    assert (found.family, found.prediction, found.latent_channels) == (facts.NAME, "flow", 16)
    assert (found.denoiser_prefix, found.text_encoders, found.vae) == (prefix, encoders, vae)
    assert found.resolution_multiple == 16
    assert inspect(folder / f"{name}.safetensors", hashed=False)["family"] == facts.NAME


@pytest.mark.parametrize(
    "prefix", ["net.", "model.model.", "diffusion_model.", "model.diffusion_model."]
)
def test_it_is_found_under_every_prefix(folder, prefix, tmp_path):
    state = load_file(folder / "z_image.safetensors")
    named = {prefix + name: value for name, value in state.items()}
    path = checkpoints.save(tmp_path / "other.safetensors", named)
    found = check_files(path, {"qwen3": folder / "qwen_3_4b.safetensors"})
    assert (found.family, found.denoiser_prefix) == (facts.NAME, prefix)


def test_every_parameter_is_filled_and_nothing_is_left(folder, tmp_path):
    tiny = checkpoints.zimage()
    state = load_file(folder / "whole.safetensors")
    state["model.diffusion_model.norm_final.weight"] = torch.ones(64)  # published; read by none
    save_file(state, tmp_path / "whole.safetensors")
    for checkpoint in (open_checkpoint(tmp_path / "whole.safetensors", **CPU), opened(folder)):
        assert not any("unknown tensors" in note for note in checkpoint.notes)
        assert any("KL" in note for note in checkpoint.notes)
        parts = {"denoiser": (checkpoint.denoiser, tiny.denoiser)}
        parts |= {k: (c, tiny.encoders[k]) for k, c in checkpoint.encoders.items()}
        assert list(parts) == ["denoiser", "qwen3"]
        for component, expected in parts.values():
            loaded = component.load(torch.float32, "cpu").state_dict()
            assert loaded.keys() == expected.state_dict().keys()
            for name, value in expected.state_dict().items():
                assert torch.equal(loaded[name], value), name


def test_a_folder_of_diffusers_is_read(tmp_path):
    checkpoint = open_checkpoint(
        checkpoints.save_folder(tmp_path / "model", checkpoints.zimage()), **CPU
    )
    assert (checkpoint.family.name, checkpoint.detection.vae) == (facts.NAME, "kl")
    assert list(checkpoint.encoders) == ["qwen3"]
    loaded = checkpoint.load().network.state_dict()
    for name, value in checkpoints.zimage().denoiser.state_dict().items():
        assert torch.equal(loaded[name], value), name
    path = tmp_path / "model" / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for change, said in (({"siglip_feat_dim": 8}, "Omni"), ({"n_kv_heads": 2}, "2 of keys")):
        path.write_text(json.dumps(config | change))
        with pytest.raises(UnsupportedModelError, match=said):
            identify(tmp_path / "model")


def test_the_header_alone_knows_every_parameter():
    network = checkpoints.zimage().denoiser
    listed = dict(facts.FAMILY.layout.parameters(dict(network.config)))
    assert listed == {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.1.feed_forward.w2.weight", "transformer lacks 1 tensor it must have"),
        ("context_refiner.1.ffn_norm1.weight", "transformer lacks 1 tensor it must have"),
        ("x_pad_token", "transformer lacks 1 tensor it must have"),
        ("cap_pad_token", "is Lumina"),
    ],
)
def test_a_missing_tensor_is_named(folder, name, said, tmp_path):
    state = load_file(folder / "z_image.safetensors")
    del state[name]
    path = checkpoints.save(tmp_path / "less.safetensors", state)
    with pytest.raises(CheckpointError, match=said):
        check_files(path, {"qwen3": folder / "qwen_3_4b.safetensors"})


RELATIVES = {
    "siglip_embedder.0.weight": "Z-Image Omni",
    "dec_net.cond_embed.weight": "Z-Image in pixel space",
    "clip_text_pooled_proj.0.weight": "NewBie",
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_called_by_its_name(folder, name, tmp_path):
    state = load_file(folder / "z_image.safetensors") | {name: torch.ones(4, 4)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"is {RELATIVES[name]} "):
        identify(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("x_embedder.weight", (64, 128), "takes 32 input channels"),
        ("noise_refiner.0.attention.qkv.weight", (96, 64), "96 rows of queries"),
        ("noise_refiner.0.feed_forward.w1.weight", (256, 64), "feed-forward layer of 256"),
    ],
)
def test_other_shapes_are_refused(folder, name, shape, said, tmp_path):
    state = load_file(folder / "z_image.safetensors") | {name: torch.ones(shape)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UnsupportedModelError, match=said):
        identify(tmp_path / "other.safetensors")


def test_what_does_not_belong_to_it_is_refused(folder, tmp_path):
    path, encoder = folder / "z_image.safetensors", folder / "qwen_3_4b.safetensors"
    with pytest.raises(
        CheckpointError, match=r"no Qwen3 text encoder.*give --qwen FILE.*qwen_3_4b.*is found"
    ):
        check_files(path, {})
    t5 = dict(checkpoints.t5().state_dict())
    checkpoints.save(tmp_path / "t5.safetensors", t5)
    with pytest.raises(
        CheckpointError, match=r"t5.safetensors holds another language model.*--qwen"
    ):
        check_files(path, {"qwen3": tmp_path / "t5.safetensors"})
    wide = {f"model.{n}": v for n, v in checkpoints.qwen3(64).state_dict().items()}
    checkpoints.save(tmp_path / "wide.safetensors", wide)
    with pytest.raises(CheckpointError, match="Qwen3 text encoder 64, its text input is 32 wide"):
        check_files(path, {"qwen3": tmp_path / "wide.safetensors"})
    wan = checkpoints.wan_names(checkpoints.wan_vae())
    checkpoints.save(tmp_path / "wan.safetensors", wan)
    with pytest.raises(CheckpointError, match="is Wan's VAE"):
        check_files(path, {"qwen3": encoder}, tmp_path / "wan.safetensors")
    small = checkpoints.vae_names(checkpoints.kl_vae())
    checkpoints.save(tmp_path / "small.safetensors", small)
    with pytest.raises(CheckpointError, match="latents of 4 channels"):
        check_files(path, {"qwen3": encoder}, tmp_path / "small.safetensors")
    state = load_file(path) | {"layers.0.attention.qkv.weight_scale": torch.ones(())}
    save_file(state, tmp_path / "scaled.safetensors")
    with pytest.raises(UnsupportedModelError, match="quantised weights with separate scales"):
        check_files(tmp_path / "scaled.safetensors", {"qwen3": encoder})
    (tmp_path / "z.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CheckpointError, match="GGUF"):
        check_files(tmp_path / "z.gguf", {"qwen3": encoder})


def test_a_prompt_is_put_into_the_chats_template():
    template = facts.FAMILY.text.template
    assert qwen_ids("", template) == [151644, 872, 198, 151645, 198, 151644, 77091, 198]
    plain = qwen_ids("(cat:1.3)", template)
    assert plain == qwen_ids("\\(cat:1.3\\)", template) != qwen_ids("cat", template)
    assert qwen_ids("{} {x}", template) != qwen_ids(" {x}", template)


def test_the_layer_before_the_last_is_read(folder, tmp_path):
    found = encode_prompts(opened(folder), ["a cat"], cache_folder=tmp_path)["a cat"].context
    ids = torch.tensor([qwen_ids("a cat", facts.FAMILY.text.template)])
    encoder = checkpoints.zimage().encoders["qwen3"]
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, states[-2], rtol=1e-3, atol=1e-4)


def test_prompts_of_unequal_length_make_one_exact_batch(folder, tmp_path):
    checkpoint = opened(folder)
    prompts = (*PROMPTS, "many words " * 40)
    texts = encode_prompts(checkpoint, prompts, cache_folder=tmp_path)
    apart = [texts[prompt] for prompt in prompts]
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


def test_a_very_long_prompt_is_taken(folder):
    checkpoint = opened(folder).load()
    with torch.no_grad():
        found = checkpoint.call()(
            torch.randn(1, 16, 4, 4), torch.tensor([500.0]), Conditioning(torch.randn(1, 1600, 32))
        )
    assert bool(torch.isfinite(found).all())


def test_the_network_is_told_how_far_the_image_is_and_answers_backwards(folder):
    checkpoint = opened(folder).load()
    torch.manual_seed(0)
    x, text = torch.randn(2, 16, 8, 6), torch.randn(2, 7, 32)
    with torch.no_grad():
        found = checkpoint.call()(x, torch.tensor([250.0, 900.0]), Conditioning(text))
        expected = checkpoint.network(
            list(x[:, :, None]), torch.tensor([0.75, 0.1]), list(text)
        ).sample
    torch.testing.assert_close(found, -torch.stack(expected)[:, :, 0], rtol=1e-3, atol=1e-4)


def test_latents_are_decoded_by_its_own_vae(folder):
    checkpoint = opened(folder).load()
    latents = torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        rgb = checkpoints.zimage().vae.decode(latents / 0.3611 + 0.1159).sample
    expected = (rgb.clamp(-1, 1) + 1) * 127.5
    found = torch.from_numpy(decode(checkpoint, latents)).permute(0, 3, 1, 2)
    assert found.shape == expected.shape and expected.std() > 1
    assert (found - expected).abs().max() <= 0.51


def test_its_blocks_can_be_packed(folder):
    network = opened(folder).load().network
    said = store_base(network, "int8", offload=False, device="cpu")
    assert said.startswith("46 layers stored, 46 packed as int8")


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
    assert read_header(lora).metadata["modelspec.architecture"] == "z-image/lora"


def test_its_lora_has_names_that_all_hosts_read_and_reads_back_as_trained(trained, folder):
    lora, run = trained
    shapes = {key: info.shape for key, info in read_header(lora).tensors.items()}
    names = {f"diffusion_model.layers.{i}.{name}" for i in range(2) for name in MODULES}
    assert {name.rsplit(".lora_", 1)[0] for name in shapes} == names
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in shapes)
    first = "diffusion_model.layers.0."
    assert shapes[f"{first}attention.to_q.lora_A.weight"] == (RANK, 64)
    assert shapes[f"{first}feed_forward.w1.lora_B.weight"] == (170, RANK)
    assert shapes[f"{first}feed_forward.w2.lora_A.weight"] == (RANK, 170)
    checkpoint, found = opened(folder).load(), read_lora(lora)
    sizes = parameter_shapes(checkpoint.network)
    pairs = by_module(lora_deltas(found, checkpoint.family, checkpoint.config, sizes))
    assert set(pairs) == set(checkpoint.family.lora.modules(checkpoint.config, "full"))
    kept = load_file(sorted((run / "state").glob("step-*/student.safetensors"))[-1])
    for module, pair in pairs.items():
        trained_delta = kept[f"{module}.lora_B"] @ kept[f"{module}.lora_A"]
        change = delta(pair, sizes[f"{module}.weight"])
        assert float(change.abs().max()) > 0
        torch.testing.assert_close(change, trained_delta, rtol=2e-2, atol=2e-3)


def pair(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=draw),
        f"{name}.lora_B.weight": torch.randn(rows, 2, generator=draw),
    }


@pytest.mark.parametrize(
    ("place", "rows"),
    [
        ("diffusion_model.layers.0.attention.qkv", 192),
        ("lora_unet_layers_0_attention_qkv", 192),
        ("diffusion_model.layers.0.attention.to_k", 64),
        ("transformer.layers.0.attention.to_k", 64),
        ("lora_unet_layers_0_attention_to_k", 64),  # musubi-tuner's, which ComfyUI does not read
        ("layers.0.attention.to_k", 64),
    ],
)
def test_loras_of_other_trainers_are_read_fused_and_split(folder, place, rows, tmp_path):
    tensors = pair(place, rows, 64)
    save_file(tensors, tmp_path / "style.safetensors")
    checkpoint, found = opened(folder).load(), read_lora(tmp_path / "style.safetensors")
    assert found.family == facts.NAME
    sizes = parameter_shapes(checkpoint.network)
    changes = by_module(lora_deltas(found, checkpoint.family, checkpoint.config, sizes))
    whole = tensors[f"{place}.lora_B.weight"] @ tensors[f"{place}.lora_A.weight"]
    key = "layers.0.attention.to_k"
    expected = whole[64:128] if rows == 192 else whole
    torch.testing.assert_close(delta(changes[key], sizes[f"{key}.weight"]), expected)
    assert len(changes) == (3 if rows == 192 else 1)


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        (pair("diffusion_model.layers.0.attention.qkv", 3840, 2304), {}, "do not fit the model's"),
        (pair("diffusion_model.layers.0.attention.qkv", 192, 64),
         {"ss_base_model_version": "lumina2"}, "is a LoRA for Lumina, but the model is Z-Image"),
        (pair("diffusion_model.blocks.0.self_attn.q_proj", 64, 64), {}, "is a LoRA for anima"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", 64, 64), {}, "is a LoRA for Flux"),
    ],
)  # fmt: skip
def test_a_lora_of_a_sibling_is_refused(folder, tensors, metadata, said, tmp_path, capsys):
    save_file(tensors, tmp_path / "style.safetensors", metadata)
    words = ("sample", folder / "whole.safetensors", "--prompt", "x", "--with-lora",
             tmp_path / "style.safetensors", "--output", tmp_path / "out",
             "--device", "cpu")  # fmt: skip
    assert cli.main([str(word) for word in words]) == 2
    assert said in capsys.readouterr().err


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


def test_its_text_encoder_and_vae_are_found_where_hosts_keep_them(folder, tmp_path, capsys):
    for place, name in (("diffusion_models", "z_image"), ("text_encoders", "qwen_3_4b"),
                        ("vae", "ae")):  # fmt: skip
        (tmp_path / place).mkdir()
        shutil.copy(folder / f"{name}.safetensors", tmp_path / place)
    model = tmp_path / "diffusion_models" / "z_image.safetensors"
    assert cli.main(["estimate", str(model), "--preset", "16gb"]) == 0
    said = capsys.readouterr()
    assert "text_encoders/qwen_3_4b.safetensors" in said.out + said.err
    assert "vae/ae.safetensors" in said.out + said.err
