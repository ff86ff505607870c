"""`inspect` tells what a file is, in data that JSON can hold and text that people can read."""

import hashlib
import json

import checkpoints
import lora_networks
import pytest
import torch
from dpdmd_studio.app.library.inspect import format_text, inspect
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.lora import layout as lora_layout
from dpdmd_studio.core.lora.file import NewLora, write_lora
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    network, family, config = lora_networks.build("sd1")
    pairs = lora_networks.random_pairs(network, family, config)
    path = tmp_path_factory.mktemp("lora") / "few.safetensors"
    return write_lora(path, NewLora(family, config, pairs, lora_networks.RECIPES["sd1"]))


def test_a_lora_tells_its_family_rank_and_recipe(lora):
    facts = inspect(lora)
    assert facts["kind"] == "LoRA"
    assert facts["family"] == "sd1"
    assert list(facts["ranks"]) == ["3"]
    assert len(facts["scales"]) == 1
    assert facts["recipe"]["num_steps"] == 4
    assert facts["hashes"]["sha256"] == hashlib.sha256(lora.read_bytes()).hexdigest()
    assert facts["hashes"]["sshs_model_hash_is_true"] is True
    assert json.loads(json.dumps(facts)) == facts


def test_the_text_shows_what_people_look_for(lora):
    text = format_text(inspect(lora))
    for fact in ("sd1", "Euler, Simple, 4 steps, CFG 1", inspect(lora)["hashes"]["autov3"]):
        assert fact in text
    assert max(map(len, text.splitlines())) < 400


def test_a_false_model_hash_is_noticed(lora, tmp_path):
    data = lora.read_bytes()
    true = inspect(lora)["metadata"]["sshs_model_hash"].encode()
    assert data.count(true) == 2
    path = tmp_path / "false.safetensors"
    path.write_bytes(data.replace(true, b"0" * 64))
    assert inspect(path)["hashes"]["sshs_model_hash_is_true"] is False


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"lora_unet_x.oft_blocks": torch.ones(2)}, "OFT"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(2)}, "Flux"),
        ({"x": torch.ones(2)}, "no known family"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, tensors, problem):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    facts = inspect(path)
    assert problem in facts["problem"]
    assert facts["hashes"]["autov2"]
    assert problem in format_text(facts)


def test_a_broken_recipe_is_named_and_the_rest_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    pair = {
        f"{name}.lora_down.weight": torch.ones(2, 4),
        f"{name}.lora_up.weight": torch.ones(4, 2),
    }
    save_file(pair, path, {"dpdmd.recipe": '{"version": 9}', "note": "\x1b[31m" + "x" * 5000})
    facts = inspect(path)
    assert facts["recipe"] is None
    assert "version" in facts["recipe_problem"]
    assert "\x1b" not in format_text(facts)


def test_damaged_and_missing_files_are_errors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x10" + bytes(7) + b'{"a": 1')
    for bad in (path, tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError):
            inspect(bad)
    with pytest.raises(CheckpointError):
        inspect(tmp_path)


def test_an_empty_scale_is_one(tmp_path):
    network, family, config = lora_networks.build("sd3")
    pairs = lora_networks.random_pairs(network, family, config, targets="attention")
    path = tmp_path / "x.safetensors"
    save_file(lora_layout.lora_tensors(family, config, pairs, torch.bfloat16, "kohya"), path)
    facts = inspect(path)
    assert (facts["family"], facts["scales"]) == ("sd3", [1.0])
    assert facts["dtypes"] == {"BF16": facts["tensors"]}


def test_a_checkpoint_tells_its_parts(tmp_path):
    state = checkpoints.file_state(checkpoints.sd1())
    path = checkpoints.save(tmp_path / "model.safetensors", state)
    facts = inspect(path)
    assert facts["kind"] == "checkpoint"
    assert facts["family"] == "sd1"
    assert facts["prediction"] == "eps"
    assert facts["text_encoders"] == ["clip_l"]
    assert facts["vae"] == "kl"
    assert "recipe" in facts
