"""Detection by names and shapes, refusals by name, and what hosts call each module of a LoRA."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import sd3_names, unet_names
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.core.errors import CheckpointError, SettingsError, UnsupportedModelError
from dpdmd_studio.core.families import (
    FAMILIES,
    AskedSampling,
    detect,
    family,
    set_otherwise,
    stated_encoder,
)
from dpdmd_studio.core.families.few_step_names import few_step_word
from dpdmd_studio.core.files.tensor_file import TensorFile, TensorInfo
from torch import nn

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
SDXL = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD35M = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "caption_projection_dim": 1536, "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
}  # fmt: skip
NETWORKS = {
    "sd1": (UNet2DConditionModel, SD15, unet_names),
    "sdxl": (UNet2DConditionModel, SDXL, unet_names),
    "sd3": (SD3Transformer2DModel, SD35M, sd3_names),
}
PREFIX = "model.diffusion_model."


def header(tensors: dict[str, tuple[int, ...]], **metadata: str) -> TensorFile:
    """A file's header, made up."""
    infos = {name: TensorInfo("F16", shape, 0, 0) for name, shape in tensors.items()}
    return TensorFile(Path("model.safetensors"), infos, metadata)


@pytest.fixture(scope="module")
def full_size():
    """Networks of the real sizes without memory, and the headers their files have."""
    made = {}
    for name, (cls, config, names) in NETWORKS.items():
        with torch.device("meta"):
            network = cls(**config)
            shapes = {key: tuple(value.shape) for key, value in names(network).items()}
        made[name] = network, shapes
    return made


def flat(value: object) -> object:
    """A config value without the several ways to write it: 1 for (1, 1, 1), lists for tuples."""
    if isinstance(value, list | tuple) and value:
        return value[0] if len(set(value)) == 1 else list(value)
    return value


@pytest.mark.parametrize("name", NETWORKS)
def test_the_config_read_off_a_full_size_header_rebuilds_the_network(name, full_size):
    network, shapes = full_size[name]
    config = family(name).layout.network_config(header(shapes).tensors)
    for key in config.keys() - {"sample_size"}:
        assert flat(config[key]) == flat(network.config[key]), key


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_a_full_size_network_has_its_own_place_in_the_file(name, full_size):
    network, shapes = full_size[name]
    facts, config = family(name), dict(network.config)
    sources = [facts.layout.tensor_source(key, config) for key in network.state_dict()]
    assert {source.key for source in sources} == set(shapes)
    assert len({(source.key, source.part) for source in sources}) == len(sources)


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_modules_are_the_layers_that_are_meant(name, full_size):
    network, _ = full_size[name]
    facts, config = family(name), dict(network.config)
    layers = {n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    attention = facts.lora.modules(config, "attention")
    full = facts.lora.modules(config, "full")
    assert len(set(full)) == len(full) and set(attention) < set(full) <= layers
    left_out = {layer.split(".")[0] for layer in layers - set(full)}
    if name == "sd3":
        assert layers - set(full) == {
            "pos_embed.proj", "context_embedder", "norm_out.linear", "proj_out",
            "time_text_embed.timestep_embedder.linear_1", "time_text_embed.text_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2", "time_text_embed.text_embedder.linear_2",
            "transformer_blocks.23.norm1_context.linear",
        }  # fmt: skip
    else:
        extra = {"add_embedding"} if name == "sdxl" else set()
        assert left_out == {"conv_in", "conv_out", "time_embedding"} | extra


GOLDEN = {
    "sd1": {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q":
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0":
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "up_blocks.3.resnets.2.conv_shortcut": "lora_unet_up_blocks_3_resnets_2_conv_shortcut",
        "down_blocks.0.downsamplers.0.conv": "lora_unet_down_blocks_0_downsamplers_0_conv",
    },
    "sdxl": {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj":
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
        "mid_block.resnets.1.conv1": "lora_unet_middle_block_2_in_layers_2",
        "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0":
            "lora_unet_output_blocks_2_1_transformer_blocks_3_attn2_to_out_0",
        "up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
        "up_blocks.2.resnets.0.conv_shortcut": "lora_unet_output_blocks_6_0_skip_connection",
        "down_blocks.0.resnets.0.time_emb_proj": "lora_unet_input_blocks_1_0_emb_layers_1",
        "down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    },
    "sd3": {
        "transformer_blocks.0.attn.to_k": ("lora_unet_joint_blocks_0_x_block_attn_qkv", 1),
        "transformer_blocks.5.attn.add_v_proj": (
            "lora_unet_joint_blocks_5_context_block_attn_qkv", 2),
        "transformer_blocks.12.attn2.to_q": ("lora_unet_joint_blocks_12_x_block_attn2_qkv", 0),
        "transformer_blocks.12.attn2.to_out.0": "lora_unet_joint_blocks_12_x_block_attn2_proj",
        "transformer_blocks.3.attn.to_add_out": "lora_unet_joint_blocks_3_context_block_attn_proj",
        "transformer_blocks.3.ff.net.0.proj": "lora_unet_joint_blocks_3_x_block_mlp_fc1",
        "transformer_blocks.3.ff_context.net.2": "lora_unet_joint_blocks_3_context_block_mlp_fc2",
        "transformer_blocks.3.norm1.linear":
            "lora_unet_joint_blocks_3_x_block_adaLN_modulation_1",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_lora_names_are_those_that_hosts_accept(name, full_size):
    config = dict(full_size[name][0].config)
    facts = family(name)
    keys = {m: facts.lora_key(m, config) for m in facts.lora.modules(config, "full")}
    for module, expected in GOLDEN[name].items():
        wanted = expected if isinstance(expected, tuple) else (expected, None)
        assert (keys[module].name, keys[module].part) == wanted


@pytest.fixture(scope="module")
def headers():
    """Complete headers of tiny checkpoints, by name."""
    makers = {
        "sd1": checkpoints.sd1, "sdxl": checkpoints.sdxl, "sd3": checkpoints.sd3,
        "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
        "sd35-large": checkpoints.sd35_large,
    }  # fmt: skip
    return {
        name: {key: tuple(value.shape) for key, value in checkpoints.file_state(make()).items()}
        for name, make in makers.items()
    }


def test_each_family_is_detected_with_its_variant(headers):
    found = {name: detect(header(tensors)) for name, tensors in headers.items()}
    assert {k: (d.family, d.title, d.prediction) for k, d in found.items()} == {
        "sd1": ("sd1", "SD 1.x", "eps"), "sdxl": ("sdxl", "SDXL", "eps"),
        "sd3": ("sd3", "SD3 medium", "flow"), "sd35": ("sd3", "SD3.5 medium", "flow"),
        "sd35-large": ("sd3", "SD3.5 large", "flow"),
    }  # fmt: skip
    assert [d.text_encoders for d in found.values()] == [
        ("clip_l",), ("clip_l", "clip_g"), ("clip_l", "clip_g", "t5xxl"), ("clip_l", "clip_g"),
        ("clip_l", "clip_g"),
    ]  # fmt: skip
    assert [d.latent_channels for d in found.values()] == [4, 4, 16, 16, 16]
    assert [d.vae for d in found.values()] == ["kl"] * 5
    assert [d.resolution for d in found.values()] == [
        512,
        1024,
        192,
        192,
        192,
    ]  # 12 positions of 16
    assert [d.resolution_multiple for d in found.values()] == [8, 8, 16, 16, 16]


@pytest.mark.parametrize(
    ("markers", "title", "prediction", "zero_snr"),
    [
        (["v_pred"], "SDXL (v-prediction)", "v", False),
        (["v_pred", "ztsnr"], "SDXL (v-prediction, zero terminal SNR)", "v", True),
        (["ztsnr"], "SDXL", "eps", False),
    ],
)
def test_sdxl_variants_are_told_by_their_markers(headers, markers, title, prediction, zero_snr):
    found = detect(header(headers["sdxl"] | dict.fromkeys(markers, (0,))))
    assert (found.title, found.prediction, found.zero_terminal_snr) == (title, prediction, zero_snr)


@pytest.mark.parametrize(
    ("name", "metadata", "markers", "expected", "said"),
    [
        ("sdxl", {"modelspec.prediction_type": "v"}, [], ("v", False), "by the file's metadata"),
        ("sd1", {"modelspec.predict_key": "V-Prediction"}, [], ("v", False), "predict_key"),
        ("sdxl", {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, [],
         ("v", True), "Zero terminal SNR by"),
        ("sdxl", {"modelspec.prediction_type": "epsilon"}, ["v_pred"], ("v", False), "though"),
        ("sdxl", {"prediction_type": "v"}, ["v_pred", "ztsnr"], ("v", True), ""),
        ("sdxl", {"modelspec.prediction_type": "epsilon"}, [], ("eps", False), ""),
        ("sdxl", {"ss_zero_terminal_snr": "True"}, [], ("eps", False), ""),
        ("sdxl", {"modelspec.prediction_type": "purple"}, [], ("eps", False), "not known"),
        ("sd3", {"modelspec.prediction_type": "epsilon"}, [], ("flow", False), ""),
    ],
)  # fmt: skip
def test_metadata_tell_the_prediction_where_no_marker_does(
    name, metadata, markers, expected, said, headers
):
    found = detect(header(headers[name] | dict.fromkeys(markers, (0,)), **metadata))
    assert (found.prediction, found.zero_terminal_snr) == expected
    assert ("v-prediction" in found.title) == (expected[0] == "v")
    assert ("zero terminal SNR" in found.title) == expected[1]
    assert said in " ".join(found.notes) and bool(said) == bool(found.notes)


@pytest.mark.parametrize(
    ("name", "stated"),
    [("sd1", "flow"), ("sd1", "rectified-flow"), ("sdxl", "sample"), ("sdxl", "x0")],
)
def test_a_prediction_by_metadata_that_is_not_handled_is_refused(name, stated, headers):
    file = header(headers[name], **{"modelspec.prediction_type": stated})
    with pytest.raises(UnsupportedModelError, match=r"metadata that it predicts.*eps or v"):
        detect(file)


@pytest.mark.parametrize(
    ("metadata", "shift", "note"),
    [
        ({"modelspec.prediction_type": "flow"}, None, "3 is taken"),
        ({"prediction_type": "Rectified-Flow", "shift": "2.5"}, 2.5, "Shift 2.5"),
        ({"parameterization": "flow matching", "ss_discrete_flow_shift": "6.0"}, 6.0, "Shift 6"),
        ({"modelspec.prediction_type": "rf", "flow_shift": "none"}, None, "3 is taken"),
        ({"modelspec.prediction_type": "rf", "flow_shift": "-1", "shift": "nan"}, None, "3 is"),
    ],
)
def test_sdxl_is_a_rectified_flow_by_its_metadata(metadata, shift, note, headers):
    found = detect(header(headers["sdxl"], **metadata))
    assert (found.prediction, found.shift, found.title) == ("flow", shift, "SDXL (rectified flow)")
    assert note in " ".join(found.notes)
    marked = detect(header(headers["sdxl"] | {"v_pred": (0,)}, **metadata))
    assert marked.prediction == "v" and "by the file's marker" in " ".join(marked.notes)


@pytest.mark.parametrize(
    ("name", "file", "hinted"),
    [
        ("sdxl", "ChenkinNoob-XL-V0.2-Rectified-Flow", True),
        ("sdxl", "noob_RF_v3", True),
        ("sdxl", "nyaflow-xl-alpha", True),
        ("sdxl", "perfectWorld", False),
        ("sdxl", "wildflowers", False),
        ("sd1", "sd15-flow-alpha", False),
        ("sd3", "sd3-rectified-flow", False),
    ],
)
def test_a_name_is_a_hint_alone(name, file, hinted, headers):
    found = detect(dataclasses.replace(header(headers[name]), path=Path(f"{file}.safetensors")))
    assert found.prediction == ("flow" if name == "sd3" else "eps")
    assert any("speaks of a rectified flow" in note for note in found.notes) == hinted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("sd_xl_turbo_1.0_fp16", "turbo"),
        ("realvisxlV40_v40LightningBakedvae", "Lightning"),
        ("dreamshaperXL_lightningDPMSDE", "lightning"),
        ("turbovisionxlSuperFastXL_v431", "turbo"),
        ("dreamshaper_8LCM", "LCM"),
        ("photonLCM_v10", "LCM"),
        ("sdxl-dmd2-merge", "dmd"),
        ("juggXIByRundiffusion_Hyper", "Hyper"),
        ("Hyper-SDXL-8steps", "Hyper"),
        ("myMerge_4step_v2", "4 step"),
        ("hyperRealism_v30", ""),
        ("DP-DMD Studio shapes", ""),
        ("hyper detailed anime", ""),
        ("model-1000steps", ""),
        ("perfectWorld_v6Baked", ""),
        ("pcmanga", ""),
        ("ponyDiffusionV6XL", ""),
        ("", ""),
    ],
)
def test_a_name_that_speaks_of_few_steps_is_a_hint(text, word, headers):
    assert few_step_word(text) == word
    plain = header(headers["sdxl"])
    named = detect(dataclasses.replace(plain, path=Path(f"{text}.safetensors")))
    titled = dataclasses.replace(plain, metadata={"modelspec.title": text})
    for found, where in ((named, "name"), (detect(titled), "metadata (modelspec.title)")):
        said = [note for note in found.notes if "few-step model already" in note]
        assert len(said) == bool(word)
        assert not said or said[0].startswith(f"The {where} says {word!r}")


def test_settings_go_before_what_a_file_says(headers):
    plain = detect(header(headers["sdxl"]))
    flow, notes = set_otherwise(plain, AskedSampling(prediction="flow", shift=2.0))
    assert (flow.prediction, flow.shift, len(notes)) == ("flow", 2.0, 2)
    assert set_otherwise(flow, AskedSampling(shift=2.0)) == (flow, [])
    assert set_otherwise(flow, AskedSampling(prediction="eps"))[0].prediction == "eps"
    for changes, message in (
        ({"shift": 2.0}, r"SDXL predicts 'eps' \(--prediction flow"),
        ({"prediction": "flow", "shift": 200.0}, "shift is 200; expected 0.01 to 100"),
        ({"prediction": "flow", "zero_terminal_snr": True}, "for v-prediction"),
        ({"prediction": "x0"}, "allowed: eps, v, flow"),
    ):
        with pytest.raises(SettingsError, match=message):
            set_otherwise(plain, AskedSampling(**changes))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "sd35", "sd35-large"])
@pytest.mark.parametrize("shape", [(0,), (0, 0, 0, 0), (4, 0)])
def test_a_tensor_without_elements_is_named(name, shape, headers):
    for key in (key for key in headers[name] if key.startswith(PREFIX)):
        with pytest.raises(CheckpointError, match=r"wrong number of axes|holds nothing|variant"):
            detect(header(headers[name] | {key: shape}))


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_denoiser_alone_is_detected_under_other_prefixes(headers, prefix):
    alone = {
        prefix + key.removeprefix(PREFIX): shape
        for key, shape in headers["sd1"].items()
        if key.startswith(PREFIX)
    }
    found = detect(header(alone))
    assert (found.family, found.denoiser_prefix, found.text_encoders) == ("sd1", prefix, ())
    assert not found.has_vae


def test_a_shapes_teacher_brings_its_resolution_and_encoder(headers):
    tensors = {k: v for k, v in headers["sd3"].items() if not k.startswith("text_encoders.")}
    inner = "text_model.embeddings.token_embedding.weight"
    tensors[f"dpdmd_text_encoder.transformer.{inner}"] = (99, 32)
    found = detect(header(tensors, **{"dpdmd.shapes": json.dumps({"resolution": 64})}))
    assert (found.text_encoders, found.resolution) == (("dpdmd",), 64)
    for hostile in ("[", "3", '{"resolution": -64}', '{"resolution": "64"}'):
        assert detect(header(tensors, **{"dpdmd.shapes": hostile})).resolution == 192


def test_a_checkpoint_that_brings_an_encoder_says_which(headers):
    place = "dpdmd_text_encoder.transformer.embedding.weight"
    stated = {"guidance_scale": 2.0, "steps": 30, "text_encoder": "runes"}
    metadata = {"dpdmd.shapes": json.dumps(stated)}
    found = detect(header(headers["sd1"] | {place: (9, 32)}, **metadata))
    assert found.text_encoders == ("clip_l", "runes") and found.stated == stated
    assert stated_encoder(found) == "runes"
    for tensors, said in ((headers["sd1"], metadata), (headers["sd1"] | {place: (9, 32)}, {})):
        plain = detect(header(tensors, **said))  # it has none, or does not say so
        assert plain.text_encoders == ("clip_l",) and stated_encoder(plain) is None
    odd = {"dpdmd.shapes": json.dumps({"text_encoder": [1]})}
    assert detect(header(headers["sd1"] | {place: (9, 32)}, **odd)).text_encoders[1:] == ("dpdmd",)


def changed(tensors, **shapes):
    """The same tensors, some with other shapes (dots written as __)."""
    return tensors | {PREFIX + key.replace("__", "."): shape for key, shape in shapes.items()}


def with_context(tensors, width):
    """The same UNet with another text width."""
    return {
        key: (shape[0], width)
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        else shape
        for key, shape in tensors.items()
    }


VARIANTS = {
    "inpainting": ("sd1", lambda t: changed(t, input_blocks__0__0__weight=(32, 9, 3, 3))),
    "InstructPix2Pix": ("sd1", lambda t: changed(t, input_blocks__0__0__weight=(32, 8, 3, 3))),
    "SD 2.x": ("sd1", lambda t: with_context(t, 1024)),
    "refiner": (
        "sdxl", lambda t: with_context(changed(t, label_emb__0__0__weight=(128, 2560)), 1280)),
    "EDM": ("sdxl", lambda t: t | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}),
    "EDM variant": ("sdxl", lambda t: t | {"edm_vpred.sigma_max": ()}),
    "Kolors": ("sdxl", lambda t: changed(t, encoder_hid_proj__weight=(96, 4096))),
    "LoRA": ("sd1", lambda t: {"lora_unet_mid_block_x.lora_down.weight": (4, 8)}),
    "a LoRA": ("sd1", lambda t: {"transformer.x.to_q.lora_A.weight": (4, 8)}),
    "is a LoRA": ("sd1", lambda t: {"lora_unet_x.hada_w1_a": (4, 8)}),
    "scaled fp8": ("sd3", lambda t: t | {"scaled_fp8": (0,)}),
    "separate scales": ("sd3", lambda t: changed(t, joint_blocks__0__x__scale_weight=())),
    "quantised": ("sd3", lambda t: changed(t, joint_blocks__0__x__comfy_quant=(20,))),
    "ControlNet": ("sd1", lambda t: {"control_model.zero_convs.0.0.weight": (4, 4, 1, 1)}),
    "pruned": ("sdxl", lambda t: {k: v for k, v in t.items() if "output_blocks.1.1.tr" not in k}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_relatives_that_need_something_else_are_refused_by_name(variant, headers):
    base, change = VARIANTS[variant]
    with pytest.raises(CheckpointError, match=variant):
        detect(header(change(headers[base])))


ARCHITECTURES = {
    "Flux": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
    "Chroma": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "distilled_guidance_layer.norms.0.scale": (5120,),
    },
    "Flux.2": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "double_stream_modulation_img.lin.weight": (6, 6),
    },
    "Qwen-Image": {"transformer_blocks.0.img_mod.1.weight": (6, 6)},
    "an incomplete Z-Image": {"cap_embedder.1.weight": (6, 6), "cap_pad_token": (1, 6)},
    "Lumina": {"cap_embedder.1.weight": (6, 6)},
    "Wan": {"head.modulation": (1, 2, 6)},
    "HiDream": {"caption_projection.0.linear.weight": (6, 6)},
    "PixArt": {"t_block.1.weight": (6, 6)},
    "Stable Cascade": {"clf.1.weight": (6, 6)},
    "Hunyuan-DiT": {"mlp_t5.0.weight": (6, 6)},
    "AuraFlow": {"double_layers.0.attn.w1q.weight": (6, 6)},
}


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_are_refused_by_name(name, prefix):
    tensors = {prefix + key: shape for key, shape in ARCHITECTURES[name].items()}
    with pytest.raises(UnsupportedModelError, match=rf"is {name} .*Supported: SD 1.x"):
        detect(header(tensors))


def test_files_without_denoiser_say_what_they_hold(headers):
    for start, part in (("cond_stage_model.", "a text encoder"), ("first_stage_model.", "a VAE")):
        tensors = {k: v for k, v in headers["sd1"].items() if k.startswith(start)}
        with pytest.raises(CheckpointError, match=f"{part} but no denoiser"):
            detect(header(tensors))
    with pytest.raises(UnsupportedModelError, match="no known family matches its 1 tensors"):
        detect(header({"something": (3,)}))
    with pytest.raises(UnsupportedModelError, match="its 0 tensors"):
        detect(header({}))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: "model_ema.diffusion_model" + name.replace(".", ""),
        lambda name: "model_ema.diffusion_model." + name,
        lambda name: "ema_model." + name,
    ],
)
def test_an_ema_copy_alone_is_said_to_be_one(rename, headers):
    ema = {
        rename(k.removeprefix(PREFIX)) if k.startswith(PREFIX) else k: shape
        for k, shape in headers["sd1"].items()
    }
    with pytest.raises(UnsupportedModelError, match=r"EMA copy of its denoiser alone"):
        detect(header(ema))
    assert detect(header(headers["sd1"] | ema)).family == "sd1"


@pytest.mark.parametrize(
    "key", ["x_embedder.proj.weight", "pos_embed", "final_layer.linear.weight"]
)
def test_a_missing_tensor_that_detection_needs_is_named(key, headers):
    tensors = {k: v for k, v in headers["sd3"].items() if k != PREFIX + key}
    with pytest.raises(CheckpointError, match=re.escape(PREFIX + key)):
        detect(header(tensors))


@pytest.mark.parametrize("key", ["x_embedder.proj.weight", "pos_embed", "context_embedder.weight"])
def test_shapes_of_a_wrong_rank_are_an_error_and_not_a_crash(key, headers):
    with pytest.raises(CheckpointError, match="wrong number of axes"):
        detect(header(headers["sd3"] | {PREFIX + key: (7,)}))


def test_the_family_is_never_read_off_the_file_name(headers):
    file = header(headers["sdxl"])
    renamed = TensorFile(Path("sd3-inpainting.safetensors"), file.tensors, {})
    assert detect(renamed) == detect(file)


def test_families_are_found_by_their_names():
    assert [family(item.name) for item in FAMILIES] == list(FAMILIES)
