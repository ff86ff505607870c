"""Diffusers folders as hubs ship them: which copy of the weights is read, what is refused."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import checkpoints
import pytest
import torch
from dpdmd_studio.app.estimate import bytes_in_16_bit
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.core.errors import CheckpointError, UnsupportedModelError
from dpdmd_studio.core.families import check_files, family, identify, read_folder
from safetensors.torch import load_file, save_file

MAKERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
    "sd35-large": checkpoints.sd35_large,
}
UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of each family, not to be changed."""
    place, made = tmp_path_factory.mktemp("folders"), {}
    for name, make in MAKERS.items():
        made[name] = checkpoints.save_folder(place / name, make())
        facts = family(identify(made[name]).family).vae
        factors = {"scaling_factor": facts.scaling_factor, "shift_factor": facts.shift_factor}
        change(made[name] / "vae" / "config.json", **factors)
    return made


@pytest.fixture
def folder(whole, tmp_path):
    """Makes a copy of a family's folder that may be changed."""
    return lambda name: Path(shutil.copytree(whole[name], tmp_path / "model"))


def in_shards(place: Path, first: str, second: str) -> dict[str, str]:
    """Put the weights there into two files of these names; the weight_map of an index."""
    (file,) = place.glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    names = sorted(state)
    halves = {first: names[: len(names) // 2], second: names[len(names) // 2 :]}
    for shard, keys in halves.items():
        save_file({key: state[key] for key in keys}, place / shard)
    return {key: shard for shard, keys in halves.items() for key in keys}


SHARDED = {
    f"{UNET}.safetensors.index.json": f"{UNET}-0000{{}}-of-00002.safetensors",
    f"{UNET}.safetensors.index.fp16.json": f"{UNET}.fp16-0000{{}}-of-00002.safetensors",
    f"{UNET}.fp16.safetensors.index.json": f"{UNET}-0000{{}}-of-00002.fp16.safetensors",
    f"{UNET}.safetensors.index.non_ema.json": f"{UNET}.non_ema-0000{{}}-of-00002.safetensors",
    "model.safetensors.index.int16.json": "model.int16-0000{}-of-00002.safetensors",
}


@pytest.mark.parametrize("index", SHARDED)
@pytest.mark.parametrize("with_index", [True, False])
def test_shards_are_found_under_every_naming(index, with_index, folder):
    path = folder("sdxl")
    place, name = path / "unet", SHARDED[index]
    expected = {key for file in read_folder(path).component("unet").files for key in file.tensors}
    weight_map = in_shards(place, name.format(1), name.format(2))
    if with_index:
        (place / index).write_text(json.dumps({"weight_map": weight_map}))
    files = read_folder(path).component("unet").files
    assert {key for file in files for key in file.tensors} == expected
    assert identify(path).family == "sdxl"
    (place / name.format(2)).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*00002-of-00002.*speaks"):
        identify(path)


def test_of_several_copies_the_first_whole_one_is_read(folder, whole):
    path = folder("sd1")
    place = path / "unet"
    plain = place / f"{UNET}.safetensors"
    for variant in ("bf16", "fp16", "ema"):
        shutil.copy(plain, place / f"{UNET}.{variant}.safetensors")

    once = bytes_in_16_bit(whole["sd1"])
    assert bytes_in_16_bit(path) == once

    def chosen() -> str:
        return read_folder(path).component("unet").files[0].path.name

    assert chosen() == plain.name
    plain.unlink()
    # what a download of "*.json" and "*.fp16*" leaves: an index whose shards are not there
    shards = {"weight_map": {"conv_in.weight": f"{UNET}-00001-of-00002.safetensors"}}
    (place / f"{UNET}.safetensors.index.json").write_text(json.dumps(shards))
    assert chosen() == f"{UNET}.fp16.safetensors"
    for variant in ("fp16", "bf16"):
        (place / f"{UNET}.{variant}.safetensors").unlink()
    assert chosen() == f"{UNET}.ema.safetensors"


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_part_without_weights_is_named_by_whoever_asks_what_the_folder_is(part, folder):
    path = folder("sd1")
    next((path / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=rf"{part}/ holds no .safetensors weights"):
        identify(path)


def change(path: Path, **entries: object) -> None:
    """Change entries of a JSON file; "absent" takes one away."""
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    config |= entries
    kept = {name: value for name, value in config.items() if value != "absent"}
    path.write_text(json.dumps(kept))


SCHEDULERS = {
    ("sdxl", "EDMEulerScheduler"): ({}, "EDM variant"),
    ("sdxl", "EDMDPMSolverMultistepScheduler"): ({"sigma_data": 0.5}, "EDM variant"),
    ("sd1", "EulerDiscreteScheduler"): ({"sigma_data": 1.0}, "EDM variant"),
    ("sdxl", "EulerDiscreteScheduler"): ({"timestep_type": "continuous"}, "timestep_type"),
    ("sdxl", "HeunDiscreteScheduler"): ({"sigma_max": 80.0}, "sigma_max is 80.0; expected null"),
    ("sdxl", "FlowMatchEulerDiscreteScheduler"): ({"shift": 0}, "shift is 0; expected"),
    ("sdxl", "FlowMatchHeunDiscreteScheduler"): ({"shift": "3"}, "shift is '3'; expected"),
    ("sdxl", "UniPCMultistepScheduler"): (
        {"use_flow_sigmas": True, "num_train_timesteps": 10}, "num_train_timesteps is 10"),
    ("sd1", "FlowMatchEulerDiscreteScheduler"): ({"shift": 3.0}, "rectified flow"),
    ("sd1", "DPMSolverMultistepScheduler"): ({"use_flow_sigmas": True}, "rectified flow"),
    ("sd1", "DDIMScheduler"): ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
    ("sdxl", "PNDMScheduler"): ({"beta_end": 0.02}, "beta_end is 0.02; expected 0.012"),
    ("sdxl", "DDPMScheduler"): ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ("sd1", "LMSDiscreteScheduler"): ({"num_train_timesteps": 4000}, "num_train_timesteps is 4000"),
    ("sd1", "EulerAncestralDiscreteScheduler"): ({"prediction_type": "sample"}, "predicts"),
    ("sd1", "PNDMScheduler"): ({"prediction_type": ["epsilon"]}, "predicts"),
    ("sdxl", "DDIMScheduler"): ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ("sdxl", "CMStochasticIterativeScheduler"): ({}, "is not a scheduler of"),
    ("sd3", "DDIMScheduler"): ({}, "network is a flow"),
    ("sd3", "DPMSolverMultistepScheduler"): ({"prediction_type": "epsilon"}, "network is a flow"),
    ("sd3", "FlowMatchEulerDiscreteScheduler"): ({"invert_sigmas": True}, "invert_sigmas"),
    ("sd3", "FlowMatchHeunDiscreteScheduler"): ({"shift": "high"}, "shift is 'high'"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), SCHEDULERS)
def test_a_scheduler_of_another_kind_is_refused_by_name(name, kind, folder):
    entries, message = SCHEDULERS[name, kind]
    path = folder(name)
    change(path / "scheduler" / "scheduler_config.json", _class_name=kind, **entries)
    with pytest.raises(UnsupportedModelError, match=message):
        identify(path)


@pytest.mark.parametrize(
    ("name", "entries", "note"),
    [
        ("sd1", {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear",
                 "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": None}, ""),
        ("sdxl", {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing",
                  "use_karras_sigmas": True, "sigma_max": None}, ""),
        ("sdxl", {"_class_name": "LCMScheduler"}, "distilled already"),
        ("sd1", {"_class_name": "TCDScheduler"}, "distilled already"),
        ("sd1", {"prediction_type": None}, ""),
        ("sd3", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, ""),
        ("sd3", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "by 1; here"),
        ("sd3", {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
         "image's size"),
        ("sd35", {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, ""),
    ],
)  # fmt: skip
def test_a_scheduler_of_the_familys_kind_is_taken(name, entries, note, folder):
    path = folder(name)
    change(path / "scheduler" / "scheduler_config.json", **entries)
    found = identify(path)
    assert found.prediction == ("flow" if name.startswith("sd3") else "eps")
    assert note in " ".join(found.notes) and bool(found.notes) == bool(note)


@pytest.mark.parametrize(
    ("entries", "shift", "note"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}, 2.5, ""),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 1.0, ""),  # as diffusers has it
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True,
          "shift": 1.0}, None, "image's size; here by 3"),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
          "flow_shift": 6.0}, 6.0, ""),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, 1.0, ""),
        ({"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow_prediction"}, None, ""),
        ({"prediction_type": "flow_prediction", "shift": 4}, 4.0, ""),
    ],
)  # fmt: skip
def test_a_folder_of_sdxl_is_a_rectified_flow_by_its_scheduler(entries, shift, note, folder):
    path = folder("sdxl")
    change(path / "scheduler" / "scheduler_config.json", **entries)
    found = identify(path)
    assert (found.prediction, found.shift) == ("flow", shift)
    assert found.title == "SDXL (rectified flow)"
    assert "by the folder's scheduler" in found.notes[0] and note in " ".join(found.notes)


def test_a_folders_name_is_a_hint_where_no_scheduler_speaks(folder):
    path = folder("sdxl")
    named = path.rename(path.with_name("model-rectified-flow"))
    (note,) = identify(named).notes
    assert "model-rectified-flow speaks of a rectified flow" in note
    change(named / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    assert not identify(named).notes


UNETS = {
    "LCM": {"time_cond_proj_dim": 256},
    "class labels": {"class_embed_type": "timestep"},
    "class labels as": {"num_class_embeds": 10},
    "Kolors": {"encoder_hid_dim": 4096},
    "projection of its text or image": {"encoder_hid_dim_type": "ip_image_proj"},
    "SSD-1B": {"transformer_layers_per_block": [1, [1, 2]]},
    "pruned": {"reverse_transformer_layers_per_block": [2, 1]},
    "number of heads": {"num_attention_heads": 8},
    "whole number, or one for each level": {"attention_head_dim": "8"},
    "does not divide": {"attention_head_dim": 7},
    "does not divide .*channels": {"attention_head_dim": [1, 1, 1]},
    "block_out_channels is None": {"block_out_channels": None},
    "block_out_channels is 320": {"block_out_channels": 320},
    r"block_out_channels is \[32, 0\]": {"block_out_channels": [32, 0]},
    "go together": {"block_out_channels": [32, 64, 64]},
    "go together. Supported": {"block_out_channels": [32, 65]},
    "FooBlock": {"down_block_types": ["FooBlock", "CrossAttnDownBlock2D"]},
    "do not go together": {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"][:1]},
    "cross_attention_dim is 'abc'": {"cross_attention_dim": "abc"},
    "cross_attention_dim is True": {"cross_attention_dim": True},
    "has no cross_attention_dim": {"cross_attention_dim": "absent"},
    "layers_per_block is -1": {"layers_per_block": -1},
    "layers_per_block is 100000": {"layers_per_block": 100000},
    "block_out_channels is .32, 32": {"block_out_channels": [32] * 400},
    "layers_per_block is 1.0": {"layers_per_block": 1.0},
    "mid_block_type": {"mid_block_type": "UNetMidBlock2D"},
    "out_channels is 8": {"out_channels": 8},
    "norm_num_groups is 0": {"norm_num_groups": 0},
    "act_fn is 'nope'": {"act_fn": "nope"},
    "freq_shift is 1": {"freq_shift": 1},
    "conv_in_kernel": {"conv_in_kernel": 5},
    "attention_type is 'gated'": {"attention_type": "gated"},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "dropout is 'much'": {"dropout": "much"},
}
SDXL_UNETS = {
    "refiner": {"projection_class_embeddings_input_dim": 2560, "cross_attention_dim": 1280},
    "addition_time_embed_dim is 128": {"addition_time_embed_dim": 128},
    "projection_class_embeddings_input_dim is 12": {"projection_class_embeddings_input_dim": 12},
}
TRANSFORMERS = {
    "num_layers is 0": {"num_layers": 0},
    "num_layers is 1000000": {"num_layers": 1000000},
    "pos_embed_max_size is 900000": {"pos_embed_max_size": 900000},
    "do not go with": {"caption_projection_dim": 128},
    "do not go with caption": {"dual_attention_layers": [7]},
    "dual_attention_layers is 'all'": {"dual_attention_layers": "all"},
    "qk_norm is 'layer_norm'": {"qk_norm": "layer_norm"},
    "patch_size is 4": {"patch_size": 4},
    "has no joint_attention_dim": {"joint_attention_dim": "absent"},
    "pos_embed_max_size is None": {"pos_embed_max_size": None},
}
CONFIGS = [
    *(("sd1", message, entries) for message, entries in UNETS.items()),
    *(("sdxl", message, entries) for message, entries in (UNETS | SDXL_UNETS).items()),
    *(("sd35", message, entries) for message, entries in TRANSFORMERS.items()),
]


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd35"])
def test_a_denoisers_config_that_is_not_handled_is_refused_by_name(name, folder):
    path = folder(name)
    place = path / ("transformer" if name == "sd35" else "unet") / "config.json"
    whole = place.read_text()
    for kind, message, entries in CONFIGS:
        if kind == name:
            place.write_text(whole)
            change(place, **entries)
            with pytest.raises(UnsupportedModelError, match=message):
                identify(path)
    place.write_text(whole)
    change(place, unheard_of={"a": 1}, sample_size=96)
    assert identify(path).notes == ()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("time_embedding.cond_proj.weight", "LCM"),
        ("position_net.null_positive_feature", "GLIGEN"),
        ("down_blocks.0.motion_modules.0.norm.weight", "AnimateDiff"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight",
         "IP-Adapter"),
        ("conv_in.weight_scale", "quantised"),
    ],
)  # fmt: skip
def test_weights_with_more_than_the_config_says_are_refused_by_name(key, message, folder):
    path = folder("sdxl")
    (file,) = (path / "unet").glob("*.safetensors")
    save_file(load_file(file) | {key: torch.ones(2)}, file)
    with pytest.raises(UnsupportedModelError, match=message):
        identify(path)


VAES = {
    "statistics of their own": {"latents_mean": [[[[-1.6, 1.1, 0.3, 0.2]]]]},
    "statistics of their own .*Playground": {"latents_std": [8.4, 4.7, 5.3, 5.5]},
}


@pytest.mark.parametrize("message", VAES)
def test_latents_with_statistics_of_their_own_are_refused(message, folder):
    path = folder("sdxl")
    change(path / "vae" / "config.json", **VAES[message])
    with pytest.raises(UnsupportedModelError, match=message):
        identify(path)


@pytest.mark.parametrize(
    ("entries", "kind", "note"),
    [
        ({"scaling_factor": 0.18215}, "kl", "scaling_factor is 0.18215; 0.13025 is used"),
        ({"shift_factor": "much"}, "kl", "shift_factor is 'much'"),
        ({"_class_name": "AutoencoderDC"}, None, "a VAE AutoencoderDC is not supported"),
        ({"norm_num_groups": 16}, None, "of 16 groups"),
        ({"block_out_channels": None, "scaling_factor": "absent"}, "kl", ""),
    ],
)
def test_a_vae_that_is_not_the_familys_is_noted(entries, kind, note, folder):
    path = folder("sdxl")
    change(path / "vae" / "config.json", **entries)
    found = identify(path)
    assert found.vae == kind and note in " ".join(found.notes) and bool(note) == bool(found.notes)


ENCODERS = {
    "do not divide": ("text_encoder", {"num_attention_heads": 7}),
    "num_attention_heads is 0": ("text_encoder_2", {"num_attention_heads": 0}),
    "num_attention_heads is 'x'": ("text_encoder", {"num_attention_heads": "x"}),
    "hidden_act is 'nope'": ("text_encoder", {"hidden_act": "nope"}),
    "hidden_act is 5": ("text_encoder_2", {"hidden_act": 5}),
    "layer_norm_eps is 0.1": ("text_encoder", {"layer_norm_eps": 0.1}),
    "feed_forward_proj is 'relu'": ("text_encoder_3", {"feed_forward_proj": "relu"}),
    "relative_attention_max_distance": (
        "text_encoder_3", {"relative_attention_max_distance": 64}),
}  # fmt: skip


@pytest.mark.parametrize("message", ENCODERS)
def test_a_text_encoders_config_that_is_not_handled_is_refused_by_name(message, folder):
    part, entries = ENCODERS[message]
    path = folder("sd3")
    change(path / part / "config.json", **entries)
    with pytest.raises(UnsupportedModelError, match=message):
        check_files(path, {})
    assert re.search(message, str(inspect(path)["problem"]))


def test_a_text_encoders_config_that_only_repeats_shapes_is_not_needed(folder):
    path = folder("sd3")
    odd = {"hidden_size": "abc", "vocab_size": None, "num_hidden_layers": [], "d_model": -1}
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        change(path / part / "config.json", **odd)
    assert check_files(path, {}) == identify(path)
    assert "problem" not in inspect(path)


def test_text_encoders_in_each_others_place_are_named(folder):
    path = folder("sd3")
    parts = [path / name for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    parts[0].rename(path / "aside")
    parts[1].rename(parts[0])
    (path / "aside").rename(parts[1])
    with pytest.raises(CheckpointError, match=r"lacks 'text_projection.weight'.*CLIP-L"):
        check_files(path, {})
    parts[0].rename(path / "aside")
    parts[2].rename(parts[0])
    (path / "aside").rename(parts[2])
    with pytest.raises(CheckpointError, match=r"text_encoder/ holds a T5 .* CLIP-L .*expected"):
        check_files(path, {})


ODD = [
    None, True, False, 0, 1, -1, 2, 7, 32, 64, 1.5, 1e300, float("inf"), 10**30, "", "abc", "2",
    [], [1], [0], [1, 2], [1, [2]], [None], ["DownBlock2D"], {}, {"a": 1}, "\0", [64] * 400,
]  # fmt: skip


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd35"])
def test_no_config_ends_in_anything_but_an_answer_or_one_of_our_errors(name, folder):
    path, numbers = folder(name), random.Random(0)
    flow = name == "sd35"
    kind = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
    scheduler = {"_class_name": kind, "prediction_type": "epsilon", "beta_end": 0.012, "shift": 3.0}
    change(path / "scheduler" / "scheduler_config.json", **scheduler)
    answered = 0
    for _ in range(150):
        place = numbers.choice([*sorted(path.glob("*/*.json")), path / "model_index.json"])
        whole = place.read_text()
        entry = numbers.choice(sorted(json.loads(whole)))
        change(place, **{entry: numbers.choice(ODD)})
        try:
            check_files(path, {})
            answered += 1
        except CheckpointError as error:
            assert len(str(error)) > 30  # noqa: PT017
        place.write_text(whole)
    assert answered
