"""Small files that a real ComfyUI takes for checkpoints and LoRAs of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import lora_networks
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from dpdmd_studio.core.families import Family, family
from dpdmd_studio.core.lora.file import NewLora, write_lora
from dpdmd_studio.core.recipe.few_step import default_recipe, family_schedule
from dpdmd_studio.trainer.families import half_of
from dpdmd_studio.trainer.families.anima import AnimaTransformer
from dpdmd_studio.trainer.families.zimage import ZImageTransformer
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint
from dpdmd_studio.trainer.model.network import NetworkCall, frozen_dtype
from dpdmd_studio.trainer.toys import encoder
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

TEACHER = Path(__file__).parents[2] / "trainer" / "assets" / "emoji-sd3.safetensors"
# ComfyUI knows a UNet by these widths; depth and everything else may be small.
UNETS = {
    "sd1": {
        **checkpoints.SD1_UNET, "block_out_channels": (320, 320), "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        **checkpoints.SDXL_UNET, "block_out_channels": (320, 320, 320), "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 5, 5),
        "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}  # fmt: skip
CONTEXT = {"sd1": (768, 0), "sdxl": (2048, 1280), "sd3": (4096, 2048), "anima": (1024, 0)}
"""Widths of conditioning and of pooled conditioning; 0 is none."""


ANIMA = checkpoints.ANIMA_TRANSFORMER | {
    "num_attention_heads": 16, "attention_head_dim": 12, "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
}  # fmt: skip
"""ComfyUI takes heads, the text's width and the adapter as published."""

ZIMAGE = {
    "dim": 3840, "n_layers": 1, "n_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
}  # fmt: skip
"""ComfyUI takes width, heads and the encoder's width as published: 909 million parameters."""
ZIMAGE_ENCODER = {
    "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
ZIMAGE_VAE = {
    "block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "latent_channels": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def _call(network: nn.Module, kind: Family) -> NetworkCall:
    schedule, dtype = family_schedule(kind), frozen_dtype(network)
    return NetworkCall(
        network, half_of(kind), kind.sampling.predictions[0], schedule, torch.device("cpu"), dtype
    )


def small_unet(name: str, folder: Path) -> tuple[NetworkCall, Path]:
    """A random UNet that ComfyUI recognises, and its file."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(**UNETS[name]).eval().requires_grad_(False)
    names = checkpoints.unet_names(network)
    path = folder / f"{name}.safetensors"
    state = {f"model.diffusion_model.{key}": value for key, value in names.items()}
    checkpoints.save(path, state, dtype=torch.float32)
    kind = family(name)
    return _call(network, kind), path


def small_sd35_large(folder: Path) -> tuple[NetworkCall, Path]:
    """A random MMDiT of SD3.5 large's kind that ComfyUI recognises, and its file.

    ComfyUI takes as many blocks as the width has heads of 64, and the text's widths as published.
    """
    sizes = {"num_attention_heads": 2, "caption_projection_dim": 128, "num_layers": 2,
             "joint_attention_dim": 4096, "pooled_projection_dim": 2048}  # fmt: skip
    network = SD3Transformer2DModel(**checkpoints.SD35_LARGE_TRANSFORMER | sizes)
    checkpoints.randomised(network).requires_grad_(False)
    names = checkpoints.sd3_names(network)
    state = {f"model.diffusion_model.{key}": value for key, value in names.items()}
    path = checkpoints.save(folder / "large.safetensors", state, dtype=torch.float32)
    return _call(network, family("sd3")), path


def small_anima(folder: Path) -> tuple[NetworkCall, Path]:
    """A random transformer with its adapter that ComfyUI recognises, and their file."""
    network = checkpoints.drawn(AnimaTransformer(**ANIMA), 0).requires_grad_(False)
    adapter = checkpoints.drawn(AnimaTextConditioner(min_sequence_length=0), 1)
    names = {f"net.{name}": value for name, value in checkpoints.anima_names(network).items()}
    names |= {f"net.llm_adapter.{name}": value for name, value in adapter.state_dict().items()}
    folder.mkdir(exist_ok=True)
    return _call(network, family("anima")), checkpoints.save(folder / "anima.safetensors", names)


def zimage_files(
    folder: Path, decoder_of: dict[str, Any] = ZIMAGE_VAE
) -> tuple[nn.Module, dict[str, Path]]:
    """(a random Z-Image that ComfyUI takes, its `denoiser`, `encoder` and `vae` as files)."""
    network = checkpoints.drawn(ZImageTransformer(**ZIMAGE), 0)
    sizes = {**ZIMAGE_ENCODER, "head_dim": 128}
    encoder = checkpoints.qwen3.__wrapped__(ZIMAGE["cap_feat_dim"], **sizes)
    tiny = checkpoints.Tiny(network, {"qwen3": encoder})
    denoiser, text = checkpoints.zimage_files(folder, tiny)
    state = checkpoints.vae_names(checkpoints.drawn(AutoencoderKL(**decoder_of), 4))
    decoder = {name: value for name, value in state.items() if name.startswith("decoder.")}
    vae = checkpoints.save(folder / "ae.safetensors", decoder)
    return network, {"denoiser": denoiser, "encoder": text, "vae": vae}


def checkpoint_and_lora(name: str, models: Path) -> tuple[str, str]:
    """A checkpoint without a text encoder, and a LoRA with a recipe for it; their file names."""
    if name == "sd3":
        path = models / "checkpoints" / teacher_in(models)
        encoder.register()
        call = open_checkpoint(TEACHER, dtype=torch.float32, device="cpu").load().call()
    elif name == "anima":
        call, path = small_anima(models / "diffusion_models")
    else:
        call, path = small_unet(name, models / "checkpoints")
    config = dict(call.network.config)
    pairs = lora_networks.random_pairs(call.network, call.family, config)
    recipe = default_recipe(name, call.prediction)
    lora = models / "loras" / f"random-{name}.safetensors"
    write_lora(lora, NewLora(call.family, config, pairs, recipe), overwrite=True)
    return path.name, lora.name


def teacher_in(models: Path) -> str:
    """The embedded flow teacher among a server's checkpoints; its file name."""
    path = models / "checkpoints" / TEACHER.name
    if not path.exists():
        path.symlink_to(TEACHER)
    return path.name


def teacher_with_clip(models: Path) -> str:
    """The embedded flow teacher with a random CLIP-L, for graphs that encode a prompt; its name."""
    path = models / "checkpoints" / "shapes-with-clip.safetensors"
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, projection_dim=768, eos_token_id=49407,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = CLIPTextModelWithProjection(config).half()
    own = {key: value for key, value in load_file(TEACHER).items() if "text_encoders" not in key}
    names = encoder.state_dict()
    clip = {f"text_encoders.clip_l.transformer.{key}": value for key, value in names.items()}
    save_file(own | clip, path)
    return path.name
