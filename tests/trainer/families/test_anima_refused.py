"""What is no Anima, or not all of one, is one clear line of the command; what only may be is noted.

All files are tiny and made here; formats of quantised weights are told by their keys.
"""

from __future__ import annotations

import struct
from pathlib import Path

import checkpoints
import pytest
import torch
from dpdmd_studio.cli import main
from dpdmd_studio.core.families import identify
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.lora_merge import open_merging
from dpdmd_studio.trainer.text.cache import encode_prompts
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("home")
ENCODER = "qwen_3_06b_base.safetensors"
LAYER = "net.blocks.0.self_attn.q_proj"
FP8, BYTES = torch.float8_e4m3fn, torch.uint8
GGUF = b"GGUF" + struct.pack("<I", 3) + bytes(64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.anima_folder(tmp_path_factory.mktemp("anima"))


def refusal(capsys, *words: object) -> str:
    """The one line that a command says of what it refuses."""
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def estimated(capsys, path: Path, *, encoder: Path | None = None) -> str:
    words = () if encoder is None else ("--qwen", encoder)
    return refusal(capsys, "estimate", path, *words)


QUANTISED = {
    "scaled fp8": {f"{LAYER}.scale_weight": torch.ones(()), "net.scaled_fp8": torch.zeros(2)},
    "fp8 of ComfyUI": {
        f"{LAYER}.weight_scale": torch.ones(()),
        f"{LAYER}.comfy_quant": torch.zeros(9, dtype=BYTES),
    },
    "int8": {f"{LAYER}.weight_scale": torch.ones(96)},
    "nvfp4": {
        f"{LAYER}.weight_scale": torch.ones(96, 6), f"{LAYER}.weight_scale_2": torch.ones(()),
    },
    "nf4": {f"{LAYER}.weight.absmax": torch.ones(96)},
    "Nunchaku": {
        f"{LAYER}.qweight": torch.zeros(96, 48, dtype=torch.int8),
        f"{LAYER}.wscales": torch.ones(2, 96),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_weights_with_scales_of_their_own_are_refused_by_their_keys(folder, tmp_path, kind, capsys):
    state = load_file(folder / "anima.safetensors")
    state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"].to(FP8)
    if kind == "Nunchaku":
        state = {name: value for name, value in state.items() if not name.startswith(LAYER)}
    save_file(state | QUANTISED[kind], tmp_path / "quantised.safetensors")
    said = estimated(capsys, tmp_path / "quantised.safetensors", encoder=folder / ENCODER)
    assert "holds quantised weights with separate scales" in said
    assert "Use the fp16, bf16, fp32 or plain fp8 version" in said


@pytest.mark.parametrize("name", ["anima-Q4_K_M.gguf", "renamed.safetensors"])
def test_gguf_is_refused_whatever_it_is_called(folder, tmp_path, name, capsys):
    (tmp_path / name).write_bytes(GGUF)
    said = estimated(capsys, tmp_path / name, encoder=folder / ENCODER)
    assert f"{name} is a GGUF file" in said
    assert "is a GGUF file" in estimated(
        capsys, folder / "whole.safetensors", encoder=tmp_path / name
    )


SIBLINGS = {
    "Cosmos-Predict2": ("net.blocks.0.adaln_modulation_self_attn.1.weight",),
    "Cosmos": ("net.blocks.block0.blocks.0.block.attn.to_q.0.weight",),
    "Wan": ("model.diffusion_model.head.modulation", "model.diffusion_model.blocks.0.ffn.0.weight"),
    "Qwen-Image": ("model.diffusion_model.transformer_blocks.0.img_mod.1.weight",),
    "an incomplete Z-Image": ("model.diffusion_model.cap_pad_token",),
}


@pytest.mark.parametrize("model", SIBLINGS)
def test_a_sibling_is_called_by_its_name(folder, tmp_path, model, capsys):
    save_file({name: torch.ones(4, 4) for name in SIBLINGS[model]}, tmp_path / "x.safetensors")
    said = estimated(capsys, tmp_path / "x.safetensors", encoder=folder / ENCODER)
    assert f"x.safetensors is {model} (" in said and "Anima and Z-Image." in said


def other_encoders() -> dict[str, dict[str, torch.Tensor]]:
    own = {f"model.{n}": v for n, v in checkpoints.qwen3().state_dict().items()}
    layer = "model.layers.0.self_attn.q_proj.weight"
    return {
        "t5xxl": dict(checkpoints.t5().state_dict()),
        "clip_l": checkpoints.clip_names(checkpoints.sd1().encoders["clip_l"]),
        "qwen_2.5_vl_7b": {name: v for name, v in own.items() if "q_norm" not in name},
        "gemma_3": own | {"model.layers.0.post_feedforward_layernorm.weight": torch.ones(32)},
        "qwen_3_4b": {f"model.{n}": v for n, v in checkpoints.qwen3(64).state_dict().items()},
        "qwen_fp8": own
        | {
            layer: own[layer].to(FP8),
            f"{layer.removesuffix('weight')}weight_scale": torch.ones(()),
        },
        "vae": checkpoints.wan_names(checkpoints.wan_vae()),
    }


ENCODERS = {
    "t5xxl": "holds another language model", "clip_l": "does not hold a Qwen3 text encoder",
    "qwen_2.5_vl_7b": "holds another language model", "gemma_3": "holds another language model",
    "qwen_3_4b": "do not fit the denoiser: widths are Qwen3 text encoder 64",
    "qwen_fp8": "holds quantised weights with separate scales",
    "vae": "does not hold a Qwen3 text encoder",
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_another_family_is_refused(folder, tmp_path, name, capsys):
    state = {key: value.clone().contiguous() for key, value in other_encoders()[name].items()}
    save_file(state, tmp_path / f"{name}.safetensors")
    said = estimated(capsys, folder / "whole.safetensors", encoder=tmp_path / f"{name}.safetensors")
    assert ENCODERS[name] in said


def other_vaes() -> dict[str, dict[str, torch.Tensor]]:
    own = checkpoints.wan_names(checkpoints.wan_vae())
    first = "decoder.conv1.weight"
    flat = {name: value[:, :, -1] if value.dim() == 5 else value for name, value in own.items()}
    return {
        "ae": checkpoints.vae_names(checkpoints.kl_vae(16, quant_conv=False)),
        "sdxl_vae": checkpoints.vae_names(checkpoints.kl_vae(4)),
        "wan2.2": own | {first: torch.ones(len(own[first]), 48, 3, 3, 3)},
        "flat": flat,
        "encoder": {f"model.{n}": v for n, v in checkpoints.qwen3().state_dict().items()},
    }


VAES = {
    "ae": "is a KL VAE, but this model's latents are those of Wan's VAE",
    "sdxl_vae": "is for latents of 4 channels, but this model's have 16",
    "wan2.2": "is for latents of 48 channels, but this model's have 16",
    "flat": "cut down to single images",
    "encoder": "holds no VAE decoder (--vae)",
}


@pytest.mark.parametrize("name", VAES)
def test_a_vae_of_another_family_is_refused(folder, tmp_path, name, capsys):
    state = {key: value.clone().contiguous() for key, value in other_vaes()[name].items()}
    save_file(state, tmp_path / f"{name}.safetensors")
    words = ("--vae", tmp_path / f"{name}.safetensors")
    assert VAES[name] in refusal(capsys, "estimate", folder / "whole.safetensors", *words)


@pytest.mark.parametrize(
    ("name", "word"),
    [("anima_turboV10", "turbo"), ("anima-4step", "4 step"), ("animaLightning", "Lightning"),
     ("anima_dmd2", "dmd"), ("anima-base-v1.0", ""), ("anima_preview3", "")],
)  # fmt: skip
def test_a_name_that_suggests_few_steps_is_warned_of_and_no_more(folder, tmp_path, name, word):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes((folder / "anima.safetensors").read_bytes())
    said = " ".join(identify(path).notes)
    assert (f"The name says {word!r}: it may be a few-step model" in said) == bool(word)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, FP8])
def test_it_loads_from_every_number_format_that_means_something_alone(folder, tmp_path, dtype):
    state = {name: v.to(dtype) for name, v in load_file(folder / "anima.safetensors").items()}
    save_file(state, tmp_path / "anima.safetensors")
    named = Overrides(text_encoders={"qwen3": folder / ENCODER})
    opened = open_checkpoint(
        tmp_path / "anima.safetensors", dtype=torch.float32, device="cpu", overrides=named
    )
    network = opened.load().network
    found = network.get_parameter("transformer_blocks.0.attn1.to_q.weight")
    assert torch.equal(found, state[f"{LAYER}.weight"].float())
    context = encode_prompts(opened, ["a cat"], cache_folder=tmp_path)["a cat"].context
    assert bool(torch.isfinite(context).all())


# LoRAs


def pair(name: str, *, rows: int = 96, columns: int = 96) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(len(name))
    return {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=draw),
        f"{name}.lora_B.weight": torch.randn(rows, 2, generator=draw),
    }


OWN = pair("diffusion_model.blocks.0.self_attn.q_proj")
FOREIGN = {
    "Wan": (pair("diffusion_model.blocks.0.self_attn.q"), {}),
    "Qwen-Image": (pair("transformer.transformer_blocks.0.img_mlp.net.0.proj"), {}),
    "Qwen-Image alone": (pair("transformer_blocks.59.attn.add_q_proj"), {}),
    "Cosmos-Predict2": (OWN, {"ss_base_model_version": "cosmos_predict2"}),
    "Cosmos-Predict1": (pair("diffusion_model.blocks.block0.blocks.0.block.attn.to_q.0"), {}),
    "zimage": (pair("diffusion_model.layers.0.attention.qkv"), {}),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv"), {}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_lora_of_a_sibling_is_called_by_its_name(folder, tmp_path, name, capsys):
    tensors, metadata = FOREIGN[name]
    save_file(tensors, tmp_path / "style.safetensors", metadata)
    said = refusal(
        capsys, "sample", folder / "whole.safetensors", "--prompt", "x", "--with-lora",
        tmp_path / "style.safetensors", "--output", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    model = name.removesuffix(" alone")
    assert f"style.safetensors is a LoRA for {model}, but the model is Anima" in said


def test_a_lora_of_the_14b_class_does_not_fit(folder, tmp_path, capsys):
    wide = pair("diffusion_model.blocks.0.self_attn.q_proj", rows=5120, columns=5120)
    save_file(wide, tmp_path / "style.safetensors")
    said = refusal(
        capsys, "sample", folder / "whole.safetensors", "--prompt", "x", "--with-lora",
        tmp_path / "style.safetensors", "--output", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert "do not fit the model's (96, 96)" in said


QWEN, ADAPTER = "layers.0.self_attn.q_proj", "blocks.0.self_attn.q_proj"
TEXT_NAMES = {
    "lora_te_layers_0_self_attn_q_proj": "qwen3",
    "lora_te_model_layers_0_self_attn_q_proj": "qwen3",
    "lora_te1_layers_0_self_attn_q_proj": "qwen3",
    f"text_encoders.qwen3_06b.transformer.model.{QWEN}": "qwen3",
    f"text_encoder.{QWEN}": "qwen3",
    f"text_encoder.model.{QWEN}": "qwen3",
    "lora_unet_llm_adapter_blocks_0_self_attn_q_proj": "llm_adapter",
    f"diffusion_model.llm_adapter.{ADAPTER}": "llm_adapter",
    f"text_conditioner.{ADAPTER}": "llm_adapter",
}


@pytest.mark.parametrize("name", TEXT_NAMES)
@pytest.mark.parametrize("beside", [True, False], ids=["with the transformer", "alone"])
def test_a_lora_of_the_text_is_merged_under_every_name(folder, tmp_path, name, beside):
    kind = TEXT_NAMES[name]
    module = QWEN if kind == "qwen3" else ADAPTER
    plain = checkpoints.anima().encoders[kind].get_submodule(module).weight
    tensors = pair(name, rows=plain.shape[0], columns=plain.shape[1])
    save_file(tensors | (OWN if beside else {}), tmp_path / "style.safetensors")
    opened = open_checkpoint(
        folder / "whole.safetensors", dtype=torch.float32, device="cpu",
        overrides=Overrides(loras=[open_merging(tmp_path / "style.safetensors", 0.5)]),
    )  # fmt: skip
    (note,) = [text for text in opened.notes if text.startswith("Merged")]
    title = {"qwen3": "1 layers of the Qwen3 text encoder", "llm_adapter": "of the text adapter"}
    assert title[kind] in note and "All its tensors are used." in note
    loaded = opened.encoders[kind].load(torch.float32, "cpu").get_submodule(module).weight
    change = 0.5 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(loaded, plain + change, rtol=1e-3, atol=1e-3)


def test_a_lora_of_clip_is_refused_and_the_adapter_is_no_other_familys(folder, tmp_path, capsys):
    clip = pair("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj")
    save_file(OWN | clip, tmp_path / "style.safetensors")
    shared = ("--prompt", "x", "--with-lora", tmp_path / "style.safetensors", "--output",
              tmp_path / "out", "--device", "cpu")  # fmt: skip
    said = refusal(capsys, "sample", folder / "whole.safetensors", *shared)
    assert "changes a text encoder that Anima does not have" in said
    save_file(pair(f"diffusion_model.llm_adapter.{ADAPTER}"), tmp_path / "style.safetensors")
    sd1 = checkpoints.save(tmp_path / "sd1.safetensors", checkpoints.file_state(checkpoints.sd1()))
    said = refusal(capsys, "sample", sd1, *shared)
    assert "changes a text encoder that SD 1.x does not have" in said


def test_text_tensors_of_a_few_step_lora_are_named_as_not_applied(folder, tmp_path, caplog):
    text = pair("lora_te_layers_0_self_attn_q_proj", rows=64, columns=32)
    save_file(OWN | text, tmp_path / "turbo.safetensors")
    words = ["sample", folder / "whole.safetensors", "--prompt", "x", "--lora",
             tmp_path / "turbo.safetensors", "--steps", "2", "--resolution", "64x48",
             "--output", tmp_path / "out", "--device", "cpu"]  # fmt: skip
    with caplog.at_level("INFO", logger="dpdmd_studio"):
        assert main([str(word) for word in words]) == 0
    assert any(
        "2 text-encoder tensors of turbo.safetensors are not applied" in line
        for line in caplog.messages
    )
