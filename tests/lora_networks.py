"""Tiny diffusers networks of each family's real layout, and random LoRA weights for them."""

import dataclasses

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from dpdmd_studio.core import families
from dpdmd_studio.core.lora.math import LoraPair
from dpdmd_studio.core.recipe.recipe import Recipe
from torch import nn

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 32,
}
CONFIGS = {
    "sd1": {
        **UNET,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 768,
        "attention_head_dim": 2,
    },
    "sdxl": {
        **UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 3),
        "cross_attention_dim": 2048,
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 48,
    },
    "sd3": {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
}
RECIPES = {
    "sd3": Recipe(
        family="sd3",
        prediction="flow",
        num_steps=4,
        sigmas=(1.0, 0.9, 0.75, 0.5, 0.0),
        timesteps=(1000.0, 900.0, 750.0, 500.0),
        shift=3.0,
        teacher_name="teacher é",
        teacher_sha256="ab" * 32,
        resolutions=((1024, 1024),),
    )
}
RECIPES["zimage"] = dataclasses.replace(RECIPES["sd3"], family="zimage")
RECIPES["anima"] = dataclasses.replace(RECIPES["sd3"], family="anima")
for name in ("sd1", "sdxl"):
    RECIPES[name] = Recipe(
        family=name,
        prediction="eps",
        num_steps=4,
        sigmas=(14.6, 4.08, 1.6, 0.69, 0.0),
        timesteps=(999.0, 749.0, 499.0, 249.0),
        clip_skip=2,
    )


def build(name, seed=0):
    """(network, family, config) with every weight random, the zero-initialised ones included."""
    torch.manual_seed(seed)
    kind = SD3Transformer2DModel if name == "sd3" else UNet2DConditionModel
    network = kind(**CONFIGS[name]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    return network, families.family(name), dict(network.config)


def weight_shapes(network):
    """Shape of the weight of every linear and convolutional layer, by module name."""
    layers = (nn.Linear, nn.Conv2d)
    named = network.named_modules()
    return {name: layer.weight.shape for name, layer in named if isinstance(layer, layers)}


def by_parameter(pairs):
    """What is given by module, by the name of the module's weight."""
    return {f"{module}.weight": pair for module, pair in pairs.items()}


def by_module(deltas):
    """What changes weights alone, by module."""
    assert all(name.endswith(".weight") for name in deltas)
    return {name.removesuffix(".weight"): pair for name, pair in deltas.items()}


def random_pairs(network, family, config, rank=3, targets="full", seed=1):
    """LoRA weights for every target module, each with a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    shapes, pairs = weight_shapes(network), {}
    for number, module in enumerate(family.lora.modules(config, targets)):
        rows, *columns = shapes[module]
        down = torch.randn(rank, *columns, generator=generator) / 10
        up = torch.randn(rows, rank, *(1 for _ in columns[1:]), generator=generator) / 10
        pairs[module] = LoraPair(down, up, 0.5 + 0.25 * (number % 3))
    return pairs


def run(network, name, seed=2):
    """One forward of the network on fixed random inputs."""
    generator = torch.Generator().manual_seed(seed)
    config = CONFIGS[name]
    if name == "sd3":
        return network(
            torch.randn(2, 16, 8, 8, generator=generator),
            encoder_hidden_states=torch.randn(2, 5, 32, generator=generator),
            pooled_projections=torch.randn(2, 16, generator=generator),
            timestep=torch.tensor([500.0, 900.0]),
        ).sample
    more = {}
    if name == "sdxl":
        more["text_embeds"] = torch.randn(2, 16, generator=generator)
        more["time_ids"] = torch.ones(2, 6)
    return network(
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([500, 900]),
        torch.randn(2, 5, config["cross_attention_dim"], generator=generator),
        added_cond_kwargs=more or None,
    ).sample
