"""Loading checkpoints: every tensor arrives, outputs are the source's, bad files are named."""

from __future__ import annotations

import re
from pathlib import Path

import checkpoints
import pytest
import torch
from diffusers.loaders import single_file_utils
from dpdmd_studio.core.errors import (
    CheckpointError,
    NonFiniteError,
    SettingsError,
    UnsupportedModelError,
)
from dpdmd_studio.core.families import AskedSampling
from dpdmd_studio.core.files.tensor_file import read_header, read_model_header
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint
from dpdmd_studio.trainer.loading.weights import converted

PREFIX = "model.diffusion_model."
MAKERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True),
    "sd35-large": checkpoints.sd35_large,
}


@pytest.fixture(scope="module")
def sources():
    """The modules of each family and the tensors of their file."""
    return {name: (make(), checkpoints.file_state(make())) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def files(sources, tmp_path_factory):
    """Single files of each family, fp16."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: checkpoints.save(folder / f"{name}.safetensors", state)
        for name, (_, state) in sources.items()
    }


def load(path: Path, dtype: torch.dtype = torch.float32, prediction=None, **changes):
    """A checkpoint on the CPU, what it reported thrown away."""
    overrides = Overrides(sampling=AskedSampling(prediction=prediction), **changes)
    return open_checkpoint(path, dtype=dtype, device="cpu", overrides=overrides).load()


def inputs(network, channels: int) -> dict[str, object]:
    """Arguments of one forward pass."""
    generator = torch.Generator().manual_seed(0)
    width = network.config.get("joint_attention_dim") or network.config["cross_attention_dim"]
    made: dict[str, object] = {
        "timestep": torch.tensor([601.0]),
        "encoder_hidden_states": torch.randn(1, 5, width, generator=generator),
        "return_dict": False,
    }
    x_t = torch.randn(1, channels, 8, 8, generator=generator)
    if network.config.get("addition_embed_type"):
        made["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 64, generator=generator),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        }
    if "joint_attention_dim" in network.config:
        made["pooled_projections"] = torch.randn(1, 96, generator=generator)
        return made | {"hidden_states": x_t}
    return made | {"sample": x_t}


def assert_same_tensors(found: torch.nn.Module, source: torch.nn.Module) -> None:
    expected, values = source.state_dict(), found.state_dict()
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize("name", MAKERS)
def test_every_tensor_of_a_single_file_arrives(name, files, sources):
    tiny, _ = sources[name]
    checkpoint = load(files[name])
    assert_same_tensors(checkpoint.network, tiny.denoiser)
    assert checkpoint.encoders.keys() == tiny.encoders.keys()
    for kind, component in checkpoint.encoders.items():
        assert_same_tensors(component.load(torch.float32, "cpu"), tiny.encoders[kind])
    arguments = inputs(tiny.denoiser, checkpoint.detection.latent_channels)
    with torch.no_grad():
        assert torch.equal(checkpoint.network(**arguments)[0], tiny.denoiser(**arguments)[0])
    assert not any(p.requires_grad for p in checkpoint.network.parameters())
    assert not checkpoint.network.training


@pytest.mark.parametrize("name", MAKERS)
def test_our_names_agree_with_diffusers_own_converter(name, sources):
    tiny, state = sources[name]
    if name.startswith("sd3"):
        denoiser = {key: value for key, value in state.items() if key.startswith(PREFIX)}
        converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(denoiser)
    else:
        converted = single_file_utils.convert_ldm_unet_checkpoint(state, tiny.denoiser.config)
    expected = tiny.denoiser.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "sd35-large"])
def test_a_diffusers_folder_gives_the_same_networks(name, sources, tmp_path):
    tiny, _ = sources[name]
    checkpoint = load(checkpoints.save_folder(tmp_path / "model", tiny))
    assert (
        checkpoint.detection.family == name.replace("sd35-large", "sd3")
        and checkpoint.detection.folder
    )
    assert_same_tensors(checkpoint.network, tiny.denoiser)
    for kind, component in checkpoint.encoders.items():
        assert_same_tensors(component.load(torch.float32, "cpu"), tiny.encoders[kind])
    assert checkpoint.decoder is not None


@pytest.mark.parametrize(
    ("pattern", "wrapped"),
    [
        (r"^model\.diffusion_model\.", r"\g<0>_orig_mod."),
        (r"^", "module."),
        (r"\.transformer\.text_model\.", "._orig_mod.transformer._orig_mod.text_model."),
        (r"^first_stage_model\.", r"\g<0>_orig_mod."),
        (r"input_blocks\.\d+\.", r"\g<0>_checkpoint_wrapped_module."),
    ],
)
def test_names_with_what_wrapped_a_module_load_as_those_without(
    pattern, wrapped, sources, tmp_path
):
    tiny, state = sources["sdxl"]
    state = {re.sub(pattern, wrapped, key): value for key, value in state.items()}
    checkpoint = load(checkpoints.save(tmp_path / "x.safetensors", state))
    assert_same_tensors(checkpoint.network, tiny.denoiser)
    for kind, component in checkpoint.encoders.items():
        assert_same_tensors(component.load(torch.float32, "cpu"), tiny.encoders[kind])
    assert checkpoint.decoder is not None and not any("unknown" in n for n in checkpoint.notes)
    checkpoint.decoder.component.load(torch.float32, "cpu")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
def test_other_storage_formats_load_into_the_wanted_one(stored, sources, tmp_path):
    tiny, state = sources["sd1"]
    path = checkpoints.save(tmp_path / "x.safetensors", state, dtype=stored)
    found = load(path, torch.bfloat16).network.state_dict()
    for name, value in tiny.denoiser.state_dict().items():
        assert torch.equal(found[name], value.to(stored).bfloat16()), name


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_storage_loads(stored, sources, tmp_path):
    tiny, state = sources["sd35"]
    path = checkpoints.save(tmp_path / "x.safetensors", state, dtype=stored)
    found = load(path, torch.bfloat16).network.state_dict()
    for name, value in tiny.denoiser.state_dict().items():
        assert torch.equal(found[name], value.to(stored).bfloat16()), name


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precisions_convert_as_torch_converts_them(stored):
    wanted = torch.bfloat16 if stored == torch.float16 else torch.float16
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(stored)
    values = every[every.isfinite()].repeat(5)  # more than one piece
    assert torch.equal(converted(values, wanted), values.to(wanted))
    assert converted(values, stored) is values
    turned = values[:12].view(3, 4).T
    assert torch.equal(converted(turned, wanted), turned.to(wanted))


def test_weights_in_the_wanted_dtype_are_mapped_and_not_copied(files):
    network = load(files["sd1"], torch.float16).network
    header = read_header(files["sd1"]).tensors
    first, last = header[PREFIX + "input_blocks.0.0.weight"], header[PREFIX + "out.2.weight"]
    distance = network.conv_out.weight.data_ptr() - network.conv_in.weight.data_ptr()
    assert distance == last.start - first.start


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sd1", PREFIX + "middle_block.1.proj_in.weight"),
        ("sdxl", "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"),
        ("sdxl", "conditioner.embedders.1.model.text_projection"),
        ("sdxl", "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"),
        ("sd3", PREFIX + "joint_blocks.1.x_block.mlp.fc2.bias"),
        ("sd3", "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.k.weight"),
    ],
)
def test_a_missing_tensor_in_use_is_named_before_anything_is_built(name, key, sources, tmp_path):
    state = {k: v for k, v in sources[name][1].items() if k != key}
    path = checkpoints.save(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match=re.escape(key)):
        load(path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sd1", PREFIX + "input_blocks.1.0.emb_layers.1.weight"),
        ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.1.layer_norm1.bias"),
        ("sd3", PREFIX + "joint_blocks.1.x_block.attn.qkv.weight"),
    ],
)
def test_a_misshaped_tensor_in_use_is_named_with_both_shapes(name, key, sources, tmp_path):
    state = sources[name][1]
    right = state[key]
    wrong = torch.zeros(right.shape[0] + 1, *right.shape[1:])
    path = checkpoints.save(tmp_path / "x.safetensors", state | {key: wrong})
    shapes = f"{re.escape(key)}.*{re.escape(str(tuple(wrong.shape)))}, expected "
    with pytest.raises(CheckpointError, match=shapes + re.escape(str(tuple(right.shape)))):
        load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(bad, sources, tmp_path):
    state = sources["sd1"][1]
    key = PREFIX + "output_blocks.0.0.in_layers.2.weight"
    broken = state[key].clone()
    broken.view(-1)[17] = bad
    path = checkpoints.save(tmp_path / "x.safetensors", state | {key: broken})
    with pytest.raises(NonFiniteError, match=re.escape(key) + ".*NaN or infinite"):
        load(path)


def test_a_weight_too_large_for_the_wanted_dtype_is_named(sources, tmp_path):
    state = sources["sd1"][1]
    key = PREFIX + "out.2.bias"
    large = state | {key: torch.full_like(state[key], 1e6)}
    path = checkpoints.save(tmp_path / "x.safetensors", large, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match=re.escape(key) + ".*beyond the range"):
        load(path, torch.float16)
    load(path, torch.bfloat16)


def test_known_extras_pass_and_unknown_ones_are_counted_and_listed(sources, tmp_path):
    state = sources["sdxl"][1]
    extras = {
        "model_ema.diffusion_modelxinput_blocks00weight": torch.zeros(2),
        "alphas_cumprod": torch.zeros(3),
        "sqrt_one_minus_alphas_cumprod": torch.zeros(3),
        "denoiser.sigmas": torch.zeros(3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(9),
        "v_pred": torch.zeros(0),
    }
    known = load(checkpoints.save(tmp_path / "a.safetensors", state | extras))
    assert not any("unknown" in note for note in known.notes)
    assert known.detection.prediction == "v"
    more = {f"strange.{i}": torch.zeros(1) for i in range(7)}
    odd = load(checkpoints.save(tmp_path / "b.safetensors", state | extras | more))
    (note,) = [note for note in odd.notes if "unknown" in note]
    assert note.startswith("7 unknown tensors") and "strange.0" in note and "2 more" in note


def without(state, *starts):
    """The tensors that do not start so."""
    return {key: value for key, value in state.items() if not key.startswith(starts)}


def test_a_unet_needs_its_text_encoders_and_the_message_says_how_to_give_them(sources, tmp_path):
    state = without(sources["sdxl"][1], "conditioner.embedders.1.")
    path = checkpoints.save(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match=r"no CLIP-G text encoder.*--clip-g FILE"):
        load(path)
    state = without(sources["sd3"][1], "text_encoders.")
    path = checkpoints.save(tmp_path / "y.safetensors", state)
    with pytest.raises(CheckpointError, match="needs one: give --clip-l FILE --clip-g FILE --t5"):
        load(path)


def test_sd3_does_without_some_encoders_and_says_so(sources, tmp_path):
    state = without(sources["sd3"][1], "text_encoders.t5xxl", "text_encoders.clip_g")
    checkpoint = load(checkpoints.save(tmp_path / "x.safetensors", state))
    assert list(checkpoint.encoders) == ["clip_l"]
    assert any("No CLIP-G text encoder, T5 text encoder" in note for note in checkpoint.notes)


@pytest.mark.parametrize("prefix", ["", "text_encoders.clip_g.transformer.", "clip_g."])
def test_a_text_encoder_may_come_from_a_file_of_its_own(prefix, sources, tmp_path):
    tiny, state = sources["sdxl"]
    checkpoint = checkpoints.save(
        tmp_path / "x.safetensors", without(state, "conditioner.embedders.1.")
    )
    names = checkpoints.clip_names(tiny.encoders["clip_g"])
    encoder = checkpoints.save(
        tmp_path / "g.safetensors", {prefix + key: value for key, value in names.items()}
    )
    loaded = load(checkpoint, text_encoders={"clip_g": encoder})
    found = loaded.encoders["clip_g"].load(torch.float32, "cpu")
    assert_same_tensors(found, tiny.encoders["clip_g"])
    with pytest.raises(CheckpointError, match=r"does not hold a T5 text encoder"):
        load(checkpoint, text_encoders={"t5xxl": encoder})
    with pytest.raises(CheckpointError, match=r"do not fit the denoiser.*96 wide"):
        load(checkpoint, text_encoders={"clip_g": encoder, "clip_l": encoder})


def test_a_denoiser_alone_without_prefix_loads_with_encoders_from_elsewhere(
    sources, files, tmp_path
):
    tiny, state = sources["sd1"]
    bare = {key.removeprefix(PREFIX): value for key, value in state.items() if PREFIX in key}
    path = checkpoints.save(tmp_path / "unet.safetensors", bare)
    assert_same_tensors(load(path, text_encoders={"clip_l": files["sd1"]}).network, tiny.denoiser)


def test_the_prediction_type_can_be_set_where_the_family_allows_it(files):
    assert load(files["sd1"], prediction="v").detection.prediction == "v"
    assert load(files["sdxl"]).detection.prediction == "eps"
    with pytest.raises(SettingsError, match=r"cannot predict 'eps'; allowed: flow"):
        load(files["sd3"], prediction="eps")


def test_a_folder_that_is_no_model_and_one_with_pickles_are_refused(sources, tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)
    folder = checkpoints.save_folder(tmp_path / "model", sources["sd1"][0])
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsupportedModelError, match="pickled weights"):
        load(folder)


def test_a_folders_scheduler_tells_the_prediction(sources, tmp_path):
    folder = checkpoints.save_folder(tmp_path / "model", sources["sdxl"][0])
    scheduler = folder / "scheduler"
    scheduler.mkdir()
    text = '{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}'
    (scheduler / "scheduler_config.json").write_text(text)
    found = load(folder).detection
    assert (found.prediction, found.zero_terminal_snr) == ("v", True)
    assert found.title == "SDXL (v-prediction, zero terminal SNR)"


def test_loading_reads_the_header_of_the_file_once(files, monkeypatch):
    read = []

    def counted(path):
        read.append(Path(path).name)
        return read_model_header(path)

    monkeypatch.setattr("dpdmd_studio.core.families.models.read_model_header", counted)
    monkeypatch.setattr("dpdmd_studio.core.families.checks.read_model_header", counted)
    load(files["sd1"])
    assert read == ["sd1.safetensors"]
