"""LoRA files of other trainers: read whatever their names, refused where they do not fit."""

import json

import lora_networks
import pytest
import torch
from dpdmd_studio.core.errors import LoraError
from dpdmd_studio.core.lora import layout as lora_layout
from dpdmd_studio.core.lora.file import (
    NewLora,
    lora_deltas,
    parameter_shapes,
    read_lora,
    write_lora,
)
from safetensors.torch import save_file

NAMES = ["sd1", "sdxl", "sd3"]


def foreign(path, tensors, **metadata):
    save_file(tensors, path, metadata or None)
    return path


def test_a_lora_of_another_family_is_refused_by_name(tmp_path):
    networks = {name: lora_networks.build(name) for name in NAMES}
    for made_for, (network, family, config) in networks.items():
        pairs = lora_networks.random_pairs(network, family, config, targets="attention")
        path = tmp_path / f"{made_for}.safetensors"
        write_lora(path, NewLora(family, config, pairs, lora_networks.RECIPES[made_for]))
        for other in set(NAMES) - {made_for}:
            target, other_family, other_config = networks[other]
            with pytest.raises(LoraError, match=f"LoRA for {made_for}, but the model is"):
                lora_deltas(read_lora(path), other_family, other_config, parameter_shapes(target))


PAIR = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, "is not a LoRA"),
        ({"lora_unet_x.dora_scale": torch.ones(2)}, "DoRA"),
        ({f"lora_te_x.{k}": v for k, v in PAIR.items()}, "text encoders only"),
        (
            {f"lora_unet_x.{k}": v for k, v in PAIR.items()} | {"odd": torch.ones(1)},
            "1 tensors.*odd",
        ),
    ],
)
def test_files_that_are_no_plain_lora_are_named(tmp_path, tensors, message):
    with pytest.raises(LoraError, match=message):
        read_lora(foreign(tmp_path / "x.safetensors", tensors))


def test_a_file_of_diffusers_states_its_alpha_in_the_metadata(tmp_path):
    tensors = {"unet.x.to_q.lora_A.weight": torch.ones(2, 4)}
    tensors |= {"unet.x.to_q.lora_B.weight": torch.ones(4, 2)}
    for facts, scale in ({"unet.lora_alpha": 8, "unet.r": 2}, 4.0), ({"unet.r": 2}, 1.0):
        path = foreign(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(facts))
        lora = read_lora(path)
        (module,) = lora.modules.values()
        assert lora.pair(module).scale == scale
    for damaged in ("{", "[]", '{"unet.lora_alpha": "x"}', '{"unet.use_rslora": true}'):
        path = foreign(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=damaged)
        with pytest.raises(LoraError, match=r"alpha|damaged"):
            read_lora(path)


@pytest.mark.parametrize("content", [b"", b"x", b"\x10" + bytes(7) + b'{"a": 1', b"\xff" * 64])
def test_damaged_files_are_lora_errors(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraError):
        read_lora(path)


def test_pickles_and_missing_files_are_lora_errors(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(LoraError, match="pickle"):
        read_lora(tmp_path / "x.pt")
    with pytest.raises(LoraError, match="no file"):
        read_lora(tmp_path / "none.safetensors")


def test_modules_the_model_lacks_are_named(tmp_path):
    network, family, config = lora_networks.build("sd1")
    pairs = lora_networks.random_pairs(network, family, config)
    tensors = lora_layout.lora_tensors(family, config, pairs, torch.float16, "kohya")
    extra = {f"lora_unet_down_blocks_9_x.{k}": v for k, v in PAIR.items()}
    lora = read_lora(foreign(tmp_path / "x.safetensors", tensors | extra))
    with pytest.raises(LoraError, match=r"1 modules.*down_blocks_9_x"):
        lora_deltas(lora, family, config, parameter_shapes(network))
    lora = read_lora(foreign(tmp_path / "y.safetensors", extra))
    with pytest.raises(LoraError, match="fits nothing"):
        lora_deltas(lora, family, config, parameter_shapes(network))


def test_wrong_sizes_are_named(tmp_path):
    network, family, config = lora_networks.build("sd1")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = read_lora(
        foreign(tmp_path / "x.safetensors", {f"{name}.{k}": v for k, v in PAIR.items()})
    )
    with pytest.raises(LoraError, match="do not fit"):
        lora_deltas(lora, family, config, parameter_shapes(network))


def renamed_keys(name):
    """Ways in which other trainers name the very same weights."""
    network, family, config = lora_networks.build(name)
    pairs = lora_networks.random_pairs(network, family, config)
    styles = {
        "kohya_diffusers": ("lora_unet_{_}", ".lora_down.weight", ".lora_up.weight"),
        "onetrainer": ("lora_transformer_{_}", ".lora_down.weight", ".lora_up.weight"),
        "peft_model": ("base_model.model.{.}", ".lora_A.weight", ".lora_B.weight"),
        "peft_default": ("unet.{.}", ".lora_A.default.weight", ".lora_B.default.weight"),
        "old": ("unet.{.}", ".lora.down.weight", ".lora.up.weight"),
        "ldm_dotted": ("diffusion_model.{ldm}", ".lora_A.weight", ".lora_B.weight"),
        "ldm_kohya": ("lora_unet_{ldm_}", ".lora_down.weight", ".lora_up.weight"),
    }
    return network, family, config, pairs, styles


@pytest.mark.parametrize("name", NAMES)
def test_other_trainers_names_reach_the_same_modules(name, tmp_path):
    network, family, config, pairs, styles = renamed_keys(name)
    shapes = parameter_shapes(network)
    for style, (prefix, down, up) in styles.items():
        tensors = {}
        for module, pair in pairs.items():
            source = family.layout.tensor_source(f"{module}.weight", config)
            if "ldm" in prefix and source.part is not None:
                continue
            ldm = source.key.removesuffix(".weight")
            whole = prefix.replace("{_}", module.replace(".", "_")).replace("{.}", module)
            whole = whole.replace("{ldm}", ldm).replace("{ldm_}", ldm.replace(".", "_"))
            tensors[whole + down], tensors[whole + up] = pair.down, pair.up * pair.scale
        found = lora_deltas(
            read_lora(foreign(tmp_path / f"{style}.safetensors", tensors)), family, config, shapes
        )
        assert len(found) == len(tensors) // 2
        for module, pair in lora_networks.by_module(found).items():
            assert torch.equal(pair.down, pairs[module].down)
            assert torch.equal(pair.up, pairs[module].up * pairs[module].scale)


def test_a_swapped_modulation_is_swapped_back(tmp_path):
    network, family, config = lora_networks.build("sd3")
    down, up = torch.randn(2, 16), torch.randn(32, 2)
    name = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    tensors |= {"lora_unet_joint_blocks_0_x_block_mlp_fc1.lora_down.weight": torch.ones(1, 16)}
    tensors |= {"lora_unet_joint_blocks_0_x_block_mlp_fc1.lora_up.weight": torch.ones(64, 1)}
    lora = read_lora(foreign(tmp_path / "x.safetensors", tensors))
    found = lora_deltas(lora, family, config, parameter_shapes(network))["norm_out.linear.weight"]
    shift, scale = (up @ down).chunk(2)
    torch.testing.assert_close(found.up @ found.down, torch.cat([scale, shift]))
