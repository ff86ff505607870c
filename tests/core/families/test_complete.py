"""The lists of what a network consists of are the networks', for real and for odd dimensions."""

from __future__ import annotations

import checkpoints
import lora_goldens
import pytest
import torch
from dpdmd_studio.core.families import family
from dpdmd_studio.core.families.parts.encoder_layout import clip_parameters, t5_parameters
from dpdmd_studio.core.files.tensor_file import TensorInfo
from torch import nn

ODD = {
    "depths": checkpoints.SDXL_UNET | {"transformer_layers_per_block": (2, 3)},
    "layers": checkpoints.SD1_UNET | {"layers_per_block": 3, "use_linear_projection": True},
    "levels": checkpoints.SD1_UNET
    | {
        "block_out_channels": (32, 96, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "heads": checkpoints.SDXL_UNET
    | {"block_out_channels": (32, 224), "attention_head_dim": (1, 3)},
    "no middle": checkpoints.SD1_UNET | {"mid_block_type": None},
}  # fmt: skip


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def same(name: str, network: nn.Module) -> None:
    found = family(name).layout.parameters(dict(network.config))
    assert dict(found) == shapes(network)


@pytest.mark.parametrize("name", lora_goldens.ARCHITECTURES)
def test_a_published_networks_parameters_are_listed(name):
    network, facts, config = lora_goldens.build(name)
    assert dict(facts.layout.parameters(config)) == shapes(network)


@pytest.mark.parametrize("kind", ODD)
def test_a_unet_of_odd_dimensions_is_listed(kind):
    with torch.device("meta"):
        network = checkpoints.UNet2DConditionModel(**ODD[kind])
    same("sdxl" if "addition_embed_type" in ODD[kind] else "sd1", network)


@pytest.mark.parametrize("dual", [None, (0,), (0, 1), (1,)])
@pytest.mark.parametrize("norm", [None, "rms_norm"])
def test_a_transformer_is_listed(dual, norm):
    config = checkpoints.SD3_TRANSFORMER | {"dual_attention_layers": dual or (), "qk_norm": norm}
    with torch.device("meta"):
        same("sd3", checkpoints.SD3Transformer2DModel(**config))


@pytest.mark.parametrize("openclip", [True, False])
def test_text_encoders_are_listed(openclip):
    encoder = checkpoints.clip(64, projected=True, layers=2, seed=2)
    state = (checkpoints.openclip_names if openclip else checkpoints.clip_names)(encoder)
    assert clip_parameters(infos(state), projected=True) == shapes(encoder)
    small = checkpoints.clip(32)
    named = checkpoints.clip_names(small)
    listed = clip_parameters(infos(named), projected=False)
    assert listed == {name: tuple(value.shape) for name, value in named.items()}


def test_t5_is_listed():
    encoder = checkpoints.t5()
    expected = shapes(encoder)
    expected.pop("encoder.embed_tokens.weight")  # the same tensor
    assert t5_parameters(infos(encoder.state_dict())) == expected


def infos(state: checkpoints.State) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", tuple(v.shape), 0, 4 * v.numel()) for name, v in state.items()}
