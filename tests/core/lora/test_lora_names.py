"""The names a LoRA has in its file, for the real architectures: golden lists and their grounds."""

import json

import lora_goldens
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from dpdmd_studio.core.lora.keys import detect_family, group_keys
from dpdmd_studio.core.lora.layout import lora_tensors
from dpdmd_studio.core.lora.math import LoraPair
from lora_networks import weight_shapes

NAMES = list(lora_goldens.ARCHITECTURES)
# Layers at the ends of a network and its embeddings, which a student shares with its teacher.
UNTOUCHED = ("conv_in", "conv_out", "time_embedding", "add_embedding", "pos_embed",
             "time_text_embed", "context_embedder", "norm_out", "proj_out", "patch_embed",
             "time_embed", "all_x_embedder", "all_final_layer", "t_embedder", "cap_embedder",
             "noise_refiner", "context_refiner")  # fmt: skip
HALF_NAMES = (".lora_down.weight", ".lora_up.weight")
HALVES = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}


@pytest.fixture(scope="module", params=NAMES)
def architecture(request):
    return (request.param, *lora_goldens.build(request.param))


def pairs_of(network, family, config):
    shapes = weight_shapes(network)
    return {
        module: LoraPair(torch.zeros(1, *shapes[module][1:]), torch.zeros(shapes[module][0], 1))
        for module in family.lora.modules(config, "full")
    }


def test_written_names_equal_the_golden_list(architecture):
    name, network, family, config = architecture
    keys = lora_tensors(family, config, pairs_of(network, family, config), torch.float16, "kohya")
    dotted = (".lora_A.weight", ".lora_B.weight")
    ends = {"sd3": HALF_NAMES, "anima": dotted, "zimage": dotted}.get(
        family.name, (*HALF_NAMES, ".alpha")
    )
    golden = lora_goldens.read(name)
    assert sorted(keys) == sorted(base + end for base in golden for end in ends)
    content = json.loads((lora_goldens.FOLDER / f"lora-names-{name}.json").read_text())
    assert content["count"] == len(golden)


def test_the_family_is_seen_from_the_names(architecture):
    _, network, family, config = architecture
    for format in ("kohya", "peft"):
        pairs = pairs_of(network, family, config)
        tensors = lora_tensors(family, config, pairs, torch.float16, format)
        modules, _, _ = group_keys(tensors, "x")
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        assert detect_family(modules, shapes) == family.name


def test_all_targets_are_every_inner_layer_of_the_network(architecture):
    _, network, family, config = architecture
    inner = {module for module in weight_shapes(network) if not module.startswith(UNTOUCHED)}
    last = f"transformer_blocks.{config.get('num_layers', 0) - 1}.norm1_context.linear"
    assert set(family.lora.modules(config, "full")) == inner - {last}


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("sd15", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
        ("sd15", "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj"),
        ("sd15", "lora_unet_mid_block_attentions_0_proj_in"),
        ("sd15", "lora_unet_down_blocks_1_resnets_0_conv_shortcut"),
        ("sd15", "lora_unet_down_blocks_2_downsamplers_0_conv"),
        ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
        ("sdxl", "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_2"),
        ("sdxl", "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0"),
        ("sdxl", "lora_unet_output_blocks_5_1_proj_out"),
        ("sdxl", "lora_unet_input_blocks_3_0_op"),
        ("sdxl", "lora_unet_output_blocks_2_2_conv"),
        ("sdxl", "lora_unet_input_blocks_1_0_in_layers_2"),
        ("sdxl", "lora_unet_input_blocks_4_0_skip_connection"),
        ("sdxl", "lora_unet_middle_block_2_out_layers_3"),
        ("sdxl", "lora_unet_output_blocks_8_0_emb_layers_1"),
        ("sd3-medium", "lora_unet_joint_blocks_0_x_block_attn_qkv"),
        ("sd3-medium", "lora_unet_joint_blocks_23_context_block_attn_qkv"),
        ("sd3-medium", "lora_unet_joint_blocks_22_context_block_mlp_fc2"),
        ("sd3-medium", "lora_unet_joint_blocks_23_x_block_adaLN_modulation_1"),
        ("sd35-medium", "lora_unet_joint_blocks_12_x_block_attn2_qkv"),
        ("sd35-medium", "lora_unet_joint_blocks_0_x_block_attn2_proj"),
        # sorryhyun/anima_lora and ai-toolkit write these
        ("anima", "diffusion_model.blocks.0.self_attn.q_proj"),
        ("anima", "diffusion_model.blocks.0.self_attn.output_proj"),
        ("anima", "diffusion_model.blocks.13.cross_attn.k_proj"),
        ("anima", "diffusion_model.blocks.27.mlp.layer1"),
        ("anima", "diffusion_model.blocks.27.mlp.layer2"),
        ("anima", "diffusion_model.blocks.27.adaln_modulation_cross_attn.2"),
        # ai-toolkit and OneTrainer write these, and ComfyUI's map has them
        ("zimage", "diffusion_model.layers.0.attention.to_q"),
        ("zimage", "diffusion_model.layers.29.attention.to_out.0"),
        ("zimage", "diffusion_model.layers.29.feed_forward.w2"),
    ],
)
def test_names_that_hosts_are_known_to_read_are_in_the_list(name, example):
    assert example in lora_goldens.read(name)


def test_what_does_not_exist_is_not_in_the_lists():
    assert not any("attn2" in name for name in lora_goldens.read("sd3-medium"))
    sd35 = lora_goldens.read("sd35-medium")
    assert "lora_unet_joint_blocks_13_x_block_attn2_qkv" not in sd35
    assert "lora_unet_joint_blocks_23_context_block_attn_proj" not in sd35
    assert "lora_unet_joint_blocks_23_context_block_mlp_fc1" not in sd35


def test_diffusers_reads_every_sdxl_name_as_the_module_it_came_from():
    family, config = lora_goldens.family_and_config("sdxl")
    modules = family.lora.modules(config, "attention")
    state = {f"{family.lora_key(m, config).name}.alpha": torch.tensor(float(i))
             for i, m in enumerate(modules)}  # fmt: skip

    class UnetConfig:
        layers_per_block = 2

    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(state), UnetConfig)
    found = {}
    for key, number in mapped.items():
        for half, name in HALVES.items():
            key = key.replace(half, name)
        found[int(number)] = key
    expected = [f"lora_unet_{module.replace('.', '_')}.alpha" for module in modules]
    assert [found[index] for index in range(len(modules))] == expected


def test_folding_loses_nothing():
    found = ["a_0_b", "a_1_b", "a_10_b_2", "a_2_c", "q_to_out_0", "plain"]
    assert lora_goldens.unfold(lora_goldens.fold(found)) == sorted(found)
