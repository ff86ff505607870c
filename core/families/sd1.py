"""Stable Diffusion 1.x: a UNet with 768-wide CLIP-L context, eps prediction (v by setting)."""

from .base import Config, Family, Tensors, VaeFacts
from .unet import context_width, is_unet, lora_modules, tensor_source, unet_config

NUM_HEADS = 8
SD2_CONTEXT = 1024

VAE = VaeFacts(
    scaling_factor=0.18215,
    shift_factor=0.0,
    # A least-squares fit of decoded pixels on latents, published with InvokeAI's previews.
    rgb_factors=(
        (0.34, 0.14, 0.07),
        (0.12, 0.40, 0.15),
        (-0.32, 0.25, 0.21),
        (-0.13, -0.19, -0.74),
    ),
)


def _matches(tensors: Tensors) -> bool:
    return (
        is_unet(tensors)
        and "label_emb.0.0.weight" not in tensors
        and context_width(tensors) != SD2_CONTEXT
    )


def _describe(tensors: Tensors, everything: Tensors) -> dict[str, object]:
    return {"title": "SD 1.x", "prediction": "eps"}


def _network_config(tensors: Tensors) -> Config:
    return unet_config(tensors, heads=lambda channels: NUM_HEADS, sample_size=64)


FAMILY = Family(
    name="sd1",
    label="SD 1.x",
    network="UNet2DConditionModel",
    schedule="vp",
    flow_shift=1.0,
    predictions=("eps", "v"),
    guidance_scale=7.5,
    resolution=512,
    resolution_multiple=8,
    vae=VAE,
    text_encoders=("clip_l",),
    text_encoder_prefixes={
        "clip_l": ("cond_stage_model.transformer.",),
        "dpdmd": ("dpdmd_text_encoder.transformer.",),
    },
    needs_all_text_encoders=True,
    matches=_matches,
    describe=_describe,
    network_config=_network_config,
    tensor_source=tensor_source,
    lora_modules=lora_modules,
)
