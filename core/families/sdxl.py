"""SDXL: a UNet with CLIP-L + CLIP-G context and size conditioning; eps, or v by a marker key."""

from .base import Config, Family, Tensors, VaeFacts
from .unet import is_unet, ldm_name, lora_modules, tensor_source, unet_config

HEAD_WIDTH = 64
TIME_ID_WIDTH = 256

VAE = VaeFacts(
    scaling_factor=0.13025,
    shift_factor=0.0,
    # A least-squares fit of decoded pixels on latents, published with InvokeAI's previews.
    rgb_factors=(
        (0.38, 0.49, 0.53),
        (-0.38, 0.16, 0.17),
        (0.18, 0.36, -0.20),
        (-0.44, -0.26, -0.43),
    ),
)


def _matches(tensors: Tensors) -> bool:
    return is_unet(tensors) and "label_emb.0.0.weight" in tensors


def _describe(tensors: Tensors, everything: Tensors) -> dict[str, object]:
    if "v_pred" not in everything:
        return {"title": "SDXL", "prediction": "eps"}
    if "ztsnr" not in everything:
        return {"title": "SDXL (v-prediction)", "prediction": "v"}
    return {
        "title": "SDXL (v-prediction, zero terminal SNR)",
        "prediction": "v",
        "zero_terminal_snr": True,
    }


def _network_config(tensors: Tensors) -> Config:
    config = unet_config(
        tensors,
        heads=lambda channels: [max(1, width // HEAD_WIDTH) for width in channels],
        sample_size=128,
    )
    config["addition_embed_type"] = "text_time"
    config["addition_time_embed_dim"] = TIME_ID_WIDTH
    config["projection_class_embeddings_input_dim"] = tensors["label_emb.0.0.weight"].shape[1]
    return config


FAMILY = Family(
    name="sdxl",
    label="SDXL",
    network="UNet2DConditionModel",
    schedule="vp",
    flow_shift=1.0,
    predictions=("eps", "v"),
    guidance_scale=7.0,
    resolution=1024,
    resolution_multiple=8,
    vae=VAE,
    text_encoders=("clip_l", "clip_g"),
    text_encoder_prefixes={
        "clip_l": ("conditioner.embedders.0.transformer.",),
        "clip_g": ("conditioner.embedders.1.model.",),
    },
    needs_all_text_encoders=True,
    matches=_matches,
    describe=_describe,
    network_config=_network_config,
    tensor_source=tensor_source,
    lora_modules=lora_modules,
    lora_name=ldm_name,
    markers=frozenset({"v_pred", "ztsnr"}),
)
