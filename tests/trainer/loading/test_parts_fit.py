"""Parts that do not belong to the model are named by headers alone; the right ones load."""

from __future__ import annotations

import checkpoints
import pytest
import torch
from checkpoints import clip, clip_names, kl_vae, openclip_names, save, t5, vae_names
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.new_run import check_request
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.library.inspect import inspect
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.families import check_files, identify
from dpdmd_studio.trainer.loading.checkpoint import Overrides, open_checkpoint

PREFIX = "model.diffusion_model."
MAKERS = {
    "sd1": checkpoints.sd1,
    "sdxl": checkpoints.sdxl,
    "sd3": checkpoints.sd3,
    "sd35": lambda: checkpoints.sd3(medium35=True, with_t5=False),
}
OPTIONS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Whole checkpoints, those without anything but the denoiser ("-bare"), encoders and VAEs."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    for name, make in MAKERS.items():
        state = checkpoints.file_state(make())
        bare = {key: value for key, value in state.items() if key.startswith(PREFIX)}
        made |= {name: save(folder / f"{name}.safetensors", state)}
        made |= {f"{name}-bare": save(folder / f"{name}-bare.safetensors", bare)}
    small, large = clip_names(clip(32)), clip_names(clip(64, projected=True, seed=2))
    words = t5().state_dict()
    token = "text_model.embeddings.token_embedding.weight"
    positions = "text_model.embeddings.position_embedding.weight"
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    others = {
        "clip-l": small,
        "clip-l-projected": small | {"text_projection.weight": torch.eye(32)},
        "clip-g": large,
        "t5": words,
        "umt5": words | {bias.format(1): words[bias.format(0)].clone()},
        "umt5-words": words | dict.fromkeys(("shared.weight",), torch.zeros(40000, 128)),
        "t5-v1": {key.replace("wi_0", "wi"): v for key, v in words.items() if "wi_1" not in key},
        "t5-heads": words | {bias.format(0): torch.zeros(32, 3)},
        "t5-flat": words | {gated: torch.zeros(3)},
        "few-tokens": small | {token: torch.zeros(100, 32)},
        "few-positions": small | {positions: torch.zeros(10, 32)},
        "empty": small | {positions: torch.zeros(0, 32)},
        "real-g": {token: torch.zeros(49408, 1280).half(), positions: torch.zeros(77, 1280)},
        "real-l": {token: torch.zeros(49408, 768).half(), positions: torch.zeros(77, 768)},
        "odd-width": {token: torch.zeros(49408, 200).half(), positions: torch.zeros(77, 200)},
        "vae-4": vae_names(kl_vae()),
        "vae-16": vae_names(kl_vae(16, quant_conv=False)),
        "vae-flat": vae_names(kl_vae()) | {"decoder.conv_in.weight": torch.zeros(3)},
        "taesd3": {"1.weight": torch.zeros(64, 16, 3, 3)},
    }
    return made | {n: save(folder / f"{n}.safetensors", state) for n, state in others.items()}


WRONG = {
    "wrong way round": ("sdxl-bare", {"clip_l": "clip-g", "clip_g": "clip-l-projected"}),
    "the wrong way round: clip-g": (
        "sd35-bare",
        {"clip_l": "clip-g", "clip_g": "clip-l-projected"},
    ),
    "It may be a CLIP-L": ("sdxl", {"clip_g": "clip-l"}),
    "pooled widths are": ("sd35", {"clip_l": "clip-g"}),
    "holds a CLIP-G text encoder": ("sd1", {"clip_l": "real-g"}),
    "holds a CLIP-L text encoder": ("sdxl", {"clip_g": "real-l"}),
    "heads do not divide its width of 200": ("sd1", {"clip_l": "odd-width"}),
    "does not hold a T5": ("sd3", {"t5xxl": "clip-g"}),
    "does not hold a CLIP-L": ("sd1", {"clip_l": "t5"}),
    "umT5": ("sd3", {"t5xxl": "umt5"}),
    "40000 tokens": ("sd3", {"t5xxl": "umt5-words"}),
    "version 1.0": ("sd3", {"t5xxl": "t5-v1"}),
    "3 attention heads": ("sd3", {"t5xxl": "t5-heads"}),
    r"has shape \(3,\)": ("sd3", {"t5xxl": "t5-flat"}),
    "knows 100 tokens": ("sd1", {"clip_l": "few-tokens"}),
    "10 positions": ("sd1", {"clip_l": "few-positions"}),
    "holds nothing": ("sd1", {"clip_l": "empty"}),
    "reads no T5 text encoder": ("sdxl", {"t5xxl": "t5"}),
    "reads no CLIP-G text encoder": ("sd1", {"clip_g": "clip-g"}),
    "has no CLIP-L": ("sd1-bare", {}),
    "latents of 16 channels, but this model's have 4": ("sdxl", {"vae": "vae-16"}),
    "latents of 4 channels": ("sd35", {"vae": "vae-4"}),
    "latents of 16 channels": ("sd1", {"vae": "taesd3"}),
    "of a convolution was expected": ("sd1", {"vae": "vae-flat"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_parts_of_another_model_are_named_before_anything_is_queued_or_loaded(
    message, files, tmp_path
):
    name, chosen = WRONG[message]
    vae = files[chosen["vae"]] if "vae" in chosen else None
    encoders = {kind: files[file] for kind, file in chosen.items() if kind != "vae"}
    with pytest.raises(CheckpointError, match=message):
        check_files(files[name], encoders, vae)
    with pytest.raises(CheckpointError, match=message):
        load(files[name], encoders, vae)
    named = {OPTIONS[kind]: str(path) for kind, path in encoders.items()}
    model = ModelFiles(checkpoint=str(files[name]), vae=vae and str(vae), **named)
    output = str(tmp_path / "new.safetensors")
    request = DistillRequest(model=model, config=DistillConfig(), output=output)
    with pytest.raises(CheckpointError, match=message):
        check_request(tmp_path / "run", request, overwrite=False)


def load(path, encoders, vae=None):
    """The checkpoint with these files beside it."""
    overrides = Overrides(text_encoders=encoders, vae=vae)
    return open_checkpoint(path, dtype=torch.float32, device="cpu", overrides=overrides).load()


def test_a_vae_of_another_family_in_the_file_is_noted_and_not_drawn_through(files, tmp_path):
    state = checkpoints.file_state(checkpoints.sd1())
    state = {key: value for key, value in state.items() if "first_stage_model" not in key}
    other = vae_names(kl_vae(16, quant_conv=False))
    state |= {f"first_stage_model.{key}": value for key, value in other.items()}
    path = save(tmp_path / "x.safetensors", state)
    found, loaded = identify(path), load(path, {})
    assert found.vae is None and "latents of 16 channels" in found.notes[0]
    assert inspect(path)["notes"] == list(found.notes)
    assert loaded.decoder is None and found.notes[0] in loaded.notes
    assert load(path, {}, files["vae-4"]).decoder is not None


@pytest.mark.parametrize("openclip", [True, False])
@pytest.mark.parametrize("name", ["text_projection", "text_projection.weight"])
def test_a_projection_is_read_under_either_name(openclip, name, files, tmp_path):
    encoder = clip(64, projected=True, seed=2)
    state = (openclip_names if openclip else clip_names)(encoder)
    state = {k: v for k, v in state.items() if not k.startswith("text_projection")}
    weight = encoder.state_dict()["text_projection.weight"]
    state[name] = weight.T.contiguous() if name == "text_projection" else weight
    path = save(tmp_path / "g.safetensors", state)
    loaded = load(files["sdxl"], {"clip_g": path}).encoders["clip_g"].load(torch.float32, "cpu")
    for key, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_whole_checkpoint_may_be_named_for_one_of_its_encoders(files):
    encoders = dict.fromkeys(("clip_l", "clip_g"), files["sdxl"])
    loaded = load(files["sd35-bare"], encoders).encoders
    width = {kind: component.config["hidden_size"] for kind, component in loaded.items()}
    assert width == {"clip_l": 32, "clip_g": 64}


def test_inspect_names_a_damaged_encoder_and_loading_another_passes_by_it(files, tmp_path):
    state = checkpoints.file_state(checkpoints.sdxl())
    key = next(k for k in state if k.startswith("conditioner.embedders.0") and "position_emb" in k)
    path = save(tmp_path / "x.safetensors", state | {key: torch.zeros(10, 32)})
    assert "10 positions" in str(inspect(path)["problem"])
    with pytest.raises(CheckpointError, match="10 positions"):
        load(path, {})
    load(path, {"clip_l": files["clip-l"]})
    assert "problem" not in inspect(files["sd1-bare"])
