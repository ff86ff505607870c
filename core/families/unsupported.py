"""Models and storage formats that are recognised in order to be refused by name."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, UnsupportedModelError
from ..files.tensor_file import TensorFile
from .base import Tensors
from .lora_names import LORA_KEY
from .unet import INPUT_LAYER, context_width, is_unet

SUPPORTED = (
    "Supported: SD 1.x, SDXL (eps, v-prediction or rectified flow), SD3 medium, SD3.5 medium and "
    "large, Anima and Z-Image"
)

QUANTISED_KEY = re.compile(
    r"(^|\.)(scaled_fp8|scale_weight|scale_input|weight_scale|input_scale|comfy_quant"
    r"|absmax|quant_state\..*|wscales|qweight|SCB)$"
)
# One characteristic tensor each; the first that is present gives the name.
ARCHITECTURES = (
    ("Chroma", "distilled_guidance_layer.norms.0.scale"),
    ("Chroma", "distilled_guidance_layer.layers.0.in_layer.weight"),
    ("Flux.2", "double_stream_modulation_img.lin.weight"),
    ("HunyuanVideo", "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    ("Flux", "double_blocks.0.img_attn.norm.key_norm.scale"),
    ("Flux", "double_blocks.0.img_attn.norm.key_norm.weight"),
    ("Flux (diffusers names)", "single_transformer_blocks.0.proj_mlp.weight"),
    ("Qwen-Image", "transformer_blocks.0.txt_mlp.net.0.proj.weight"),
    ("Qwen-Image", "transformer_blocks.0.img_mod.1.weight"),
    ("Z-Image Omni", "siglip_embedder.0.weight"),
    ("Z-Image in pixel space", "dec_net.cond_embed.weight"),
    ("NewBie", "clip_text_pooled_proj.0.weight"),
    ("a diffusers Z-Image without its folder", "all_x_embedder.2-1.weight"),
    ("an incomplete Z-Image", "cap_pad_token"),
    ("Lumina", "cap_embedder.1.weight"),
    ("Wan", "head.modulation"),
    ("HiDream", "caption_projection.0.linear.weight"),
    ("PixArt", "t_block.1.weight"),
    ("PixArt", "adaln_single.emb.timestep_embedder.linear_1.bias"),
    ("Stable Cascade", "clf.1.weight"),
    ("Hunyuan-DiT", "mlp_t5.0.weight"),
    ("AuraFlow", "double_layers.0.attn.w1q.weight"),
    ("Mochi", "t5_yproj.weight"),
    ("Stable Audio", "transformer.rotary_pos_emb.inv_freq"),
    ("Cosmos", "blocks.block0.blocks.0.block.attn.to_q.0.weight"),
    ("Cosmos-Predict2", "blocks.0.adaln_modulation_self_attn.1.weight"),
    ("ACE-Step", "genre_embedder.weight"),
    ("CogVideoX", "blocks.0.norm1.linear.weight"),
    ("OmniGen2", "time_caption_embed.timestep_embedder.linear_1.bias"),
    ("Kolors", "encoder_hid_proj.weight"),
    ("a diffusers UNet without its folder", "down_blocks.0.resnets.0.conv1.weight"),
    ("a diffusers Anima or Cosmos without its folder",
     "transformer_blocks.0.norm1.linear_1.weight"),
    ("a diffusers SD3 without its folder", "transformer_blocks.0.attn.add_q_proj.weight"),
)  # fmt: skip
MARKERS = ("v_pred", "ztsnr")
"""Tensors that say something by being there; they may be empty."""
EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
TEXT_ENCODER_KEYS = ("token_embedding.weight", "shared.weight", "embed_tokens.weight")
OTHER_PARTS = (
    "text_encoders.", "cond_stage_model.", "conditioner.", "first_stage_model.", "vae.",
)  # fmt: skip
EXTRA_INPUTS = (
    (r"(^|\.)(time_embed|time_embedding)\.cond_proj\.",
     "a few-step model already, a latent consistency model (LCM) with guidance as an input"),
    (r"(^|\.)position_net\.|\.fuser\.", "a GLIGEN model, which takes boxes"),
    (r"(^|\.)motion_modules?\.|\.temporal_transformer\.", "an AnimateDiff model"),
    (r"\.(to_[kv]_ip|processor\.)", "a model with an IP-Adapter in it"),
    (r"(^|\.)class_embedding\.", "a UNet with class labels as a further input"),
)  # fmt: skip
EMA_KEY = re.compile(r"(^|\.)(model_ema|ema_model|ema|params_ema)\.")
VAE_KEYS = (
    "decoder.conv_in.weight", "decoder.conv1.weight", "decoder.up.0.block.0.conv1.weight",
    "decoder.1.weight",
)  # fmt: skip


def refuse_storage(file: TensorFile) -> None:
    """Refuse LoRAs and quantised denoisers, whatever network they are.

    Text encoders and VAEs are looked at when they are used: a file of their own may replace them.

    Raises:
        CheckpointError: the file is a LoRA.
        UnsupportedModelError: the weights are stored with separate scales.
    """
    name = file.path.name
    for key in file.tensors:
        if LORA_KEY.search(key):
            raise CheckpointError(
                f"{name} is a LoRA (it holds {key!r}), but a checkpoint is expected here. Give the "
                "base model's file, and the LoRA where a LoRA is asked for."
            )
    refuse_quantised(name, (key for key in file.tensors if not key.startswith(OTHER_PARTS)))


def refuse_quantised(name: str, keys: Iterable[str]) -> None:
    """Refuse weights that mean nothing without the scales stored beside them.

    Raises:
        UnsupportedModelError: one of the keys is such a scale.
    """
    for key in keys:
        if QUANTISED_KEY.search(key):
            raise UnsupportedModelError(
                f"{name} holds quantised weights with separate scales (scaled fp8, nf4 or the "
                f"like: {key!r}). Use the fp16, bf16, fp32 or plain fp8 version of this model."
            )


def refuse_empty(name: str, prefix: str, tensors: Tensors) -> None:
    """Refuse tensors of a network that hold no number.

    Raises:
        CheckpointError: names the first.
    """
    for key, info in tensors.items():
        if not info.count and key not in MARKERS:
            raise CheckpointError(
                f"{name}: {prefix + key!r} has shape {info.shape}, so it holds nothing. The file "
                "is damaged; download it again, or save it again from your host."
            )


def refuse_extra_inputs(name: str, tensors: Tensors) -> None:
    """Refuse a network that takes more than noised latents, time and text.

    Raises:
        UnsupportedModelError: names the tensor and what the model is.
    """
    for key in tensors:
        for pattern, model in EXTRA_INPUTS:
            if re.search(pattern, key):
                raise UnsupportedModelError(
                    f"{name} is {model} (it has {key!r}), which is not supported. Give the "
                    f"ordinary model that it was made from. {SUPPORTED}."
                )


def refuse_variants(file: TensorFile, tensors: Tensors) -> None:
    """Refuse relatives of the supported families that need another objective or input.

    Args:
        file: the whole file; its markers are looked at.
        tensors: denoiser tensors, names without prefix.

    Raises:
        UnsupportedModelError: inpainting, SD 2.x, refiner, EDM, video.
    """
    variant = _variant(file, tensors)
    if variant:
        raise UnsupportedModelError(f"{file.path.name} is {variant}. {SUPPORTED}.")


def _variant(file: TensorFile, tensors: Tensors) -> str | None:
    if any(key in file.tensors for key in EDM_MARKERS):
        return "an EDM variant (it has edm_* markers, as Playground v2.5 or CosXL)"
    if "joint_blocks.0.context_block.attn.qkv.weight" in tensors:
        channels = tensors["x_embedder.proj.weight"].shape[1]
        return None if channels == 16 else f"an SD3 variant with {channels} input channels"
    if not is_unet(tensors):
        return None
    refuse_extra_inputs(file.path.name, tensors)
    if any(".time_stack." in key or ".time_mix_blocks." in key for key in tensors):
        return "a video model (Stable Video Diffusion)"
    return _unet_variant(tensors)


def _unet_variant(tensors: Tensors) -> str | None:
    channels, width = tensors[INPUT_LAYER].shape[1], context_width(tensors)
    if channels == 9:
        return "an inpainting model (9 input channels); use the ordinary model it was made from"
    if channels == 8:
        return "an image-editing model (8 input channels, as InstructPix2Pix)"
    if channels != 4:
        return f"a UNet with {channels} input channels (an upscaler or control variant)"
    if "label_emb.0.0.weight" not in tensors:
        return "SD 2.x (text context 1024 wide)" if width == 1024 else None
    if tensors["label_emb.0.0.weight"].shape[1] == 2560 and width == 1280:
        return "the SDXL refiner; use the SDXL base model"
    return "Kolors" if "encoder_hid_proj.weight" in tensors else None


def unknown_model(path: Path, tensors: dict[str, Tensors]) -> CheckpointError:
    """The error for a file in which no supported denoiser was found.

    Args:
        path: the file.
        tensors: its tensors by denoiser prefix, names without that prefix.
    """
    for prefix, stripped in tensors.items():
        for name, key in ARCHITECTURES:
            if key in stripped:
                return UnsupportedModelError(
                    f"{path.name} is {name} ({prefix + key!r}), which is not supported. "
                    f"{SUPPORTED}."
                )
    names = tensors[""]
    parts = [part for part, keys in (("a text encoder", TEXT_ENCODER_KEYS), ("a VAE", VAE_KEYS))
             if any(name.endswith(keys) for name in names)]  # fmt: skip
    if any(name.startswith(("control_model.", "input_hint_block.")) for name in names):
        return UnsupportedModelError(
            f"{path.name} is a ControlNet, not a checkpoint. {SUPPORTED}, each as a full model."
        )
    ema = next((name for name in names if EMA_KEY.search(name)), None)
    if ema is not None:
        return UnsupportedModelError(
            f"{path.name} holds the EMA copy of its denoiser alone ({ema!r}), which hosts do not "
            "read either. Use the checkpoint with the ordinary weights, or save the EMA weights "
            "under the ordinary names ('model.diffusion_model.…')."
        )
    if parts:
        return CheckpointError(
            f"{path.name} holds {' and '.join(parts)} but no denoiser (UNet or transformer). Give "
            "the full checkpoint; separate text encoders and VAEs have options of their own."
        )
    first = next(iter(names), None)
    return UnsupportedModelError(
        f"{path.name}: no known family matches its {len(names)} tensors"
        + (f" (the first is {first!r}). " if first else ". ")
        + f"{SUPPORTED}."
    )
