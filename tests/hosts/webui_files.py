"""Small checkpoints that WebUIs take, where A1111 needs it with the settings that say so beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import comfyui_files
import lora_networks
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from dpdmd_studio.core.families import family
from dpdmd_studio.core.lora.file import NewLora, write_lora
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.trainer.families.anima import AnimaTransformer
from dpdmd_studio.trainer.loading.vae import WanDecoder
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SETTINGS = """\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    {linear_start: 0.00085, linear_end: 0.0120, num_timesteps_cond: 1, timesteps: 1000,
     first_stage_key: jpg, cond_stage_key: txt, image_size: 64, channels: 4,
     conditioning_key: crossattn, scale_factor: 0.18215, use_ema: false,
     unet_config: {target: ldm.modules.diffusionmodules.openaimodel.UNetModel, params:
       {image_size: 32, in_channels: 4, out_channels: 4, model_channels: 32,
        attention_resolutions: [4, 2, 1], num_res_blocks: 2, channel_mult: [1, 2, 2, 2],
        num_heads: 8, use_spatial_transformer: true, transformer_depth: 1, context_dim: 768,
        use_checkpoint: false, legacy: false}},
     first_stage_config: {target: ldm.models.autoencoder.AutoencoderKL, params:
       {embed_dim: 4, lossconfig: {target: torch.nn.Identity}, ddconfig:
         {double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 32,
          ch_mult: [1, 1, 1, 1], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}}},
     cond_stage_config: {target: ldm.modules.encoders.modules.FrozenCLIPEmbedder}}
"""
UNET = {  # few channels, but the blocks of SD 1.5: A1111 knows LoRAs by the blocks' numbers
    "sample_size": 64, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
CLIP = CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, projection_dim=768, eos_token_id=49407,
)  # fmt: skip
WIDE_UNET = {  # Forge knows SD 1.5 by this width
    **checkpoints.SD1_UNET, "block_out_channels": (320, 320), "cross_attention_dim": 768,
    "attention_head_dim": 8,
}  # fmt: skip
VAE = {
    "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip

SDXL_SETTINGS = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config: {target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting}
        scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling}
        discretization_config:
          {target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization}
    network_config: {target: sgm.modules.diffusionmodules.openaimodel.UNetModel, params:
      {adm_in_channels: 2560, num_classes: sequential, use_checkpoint: false, in_channels: 4,
       out_channels: 4, model_channels: 64, attention_resolutions: [4, 2], num_res_blocks: 2,
       channel_mult: [1, 2, 4], num_head_channels: 64, use_spatial_transformer: true,
       use_linear_in_transformer: true, transformer_depth: [1, 1, 2], context_dim: 1792,
       spatial_transformer_attn_type: softmax, legacy: false}}
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - {is_trainable: false, input_key: txt,
             target: sgm.modules.encoders.modules.FrozenCLIPEmbedder,
             params: {layer: hidden, layer_idx: 11}}
          - {is_trainable: false, input_key: txt,
             target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2,
             params: {arch: ViT-H-14, version: laion2b_s32b_b79k, freeze: true,
                      layer: penultimate, always_return_pooled: true, legacy: false}}
          - {is_trainable: false, input_key: original_size_as_tuple, params: {outdim: 256},
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}
          - {is_trainable: false, input_key: crop_coords_top_left, params: {outdim: 256},
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}
          - {is_trainable: false, input_key: target_size_as_tuple, params: {outdim: 256},
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        lossconfig: {target: torch.nn.Identity}
        ddconfig:
          {attn_type: vanilla, double_z: true, z_channels: 4, resolution: 256, in_channels: 3,
           out_ch: 3, ch: 32, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, attn_resolutions: [],
           dropout: 0.0}
"""
SDXL_UNET = {
    "sample_size": 16, "block_out_channels": (64, 128, 256), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True, "cross_attention_dim": 1792,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1024 + 6 * 256,
}  # fmt: skip
OPEN_CLIP = CLIPTextConfig(  # the text half of OpenCLIP's ViT-H-14, in the place of ViT-bigG-14
    vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, projection_dim=1024, eos_token_id=49407, hidden_act="gelu",
)  # fmt: skip


def small_sdxl(folder: Path) -> Path:
    """An SDXL of random weights for A1111: two real kinds of CLIP, a small UNet and VAE."""
    open_clip = CLIPTextModelWithProjection(OPEN_CLIP)
    tiny = checkpoints.Tiny(
        checkpoints.drawn(UNet2DConditionModel(**SDXL_UNET), 0),
        {
            "clip_l": checkpoints.randomised(CLIPTextModel(CLIP), 1),
            "clip_g": checkpoints.randomised(open_clip, 2),
        },
        checkpoints.randomised(AutoencoderKL(**VAE), 4),  # type: ignore[arg-type]
    )
    path = folder / "small-sdxl.safetensors"
    path.with_suffix(".yaml").write_text(SDXL_SETTINGS, encoding="utf-8")
    return checkpoints.save(path, checkpoints.file_state(tiny))


def small_sd1(folder: Path) -> Path:
    """The checkpoint's file, of random weights: a real CLIP-L, a small UNet and a small VAE."""
    tiny = checkpoints.Tiny(
        checkpoints.randomised(UNet2DConditionModel(**UNET)),
        {"clip_l": checkpoints.randomised(CLIPTextModel(CLIP), 1)},
        checkpoints.randomised(AutoencoderKL(**VAE), 4),  # type: ignore[arg-type]
    )
    path = folder / "small-sd1.safetensors"
    path.with_suffix(".yaml").write_text(SETTINGS, encoding="utf-8")
    return checkpoints.save(path, checkpoints.file_state(tiny))


def wide_sd1(folder: Path) -> Path:
    """A checkpoint of random weights for Forge: VAE and CLIP-L of real size, a small UNet.

    Forge divides by the mean of an encoded prompt, which is 0 for a fresh last norm: its bias is
    drawn, too.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL(
        **{**VAE, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    )
    unet = UNet2DConditionModel(**WIDE_UNET)
    encoder = checkpoints.randomised(CLIPTextModel(CLIP), 1)
    tiny = checkpoints.Tiny(unet, {"clip_l": encoder}, vae)
    return checkpoints.save(folder / "wide-sd1.safetensors", checkpoints.file_state(tiny))


def random_lora(path: Path, unet: dict[str, Any]) -> Path:
    """A random LoRA with a recipe for a UNet of that configuration."""
    network = UNet2DConditionModel(**unet)
    config = dict(network.config)
    pairs = lora_networks.random_pairs(network, family("sd1"), config, targets="attention")
    recipe = default_recipe("sd1", "eps")
    return write_lora(path, NewLora(family("sd1"), config, pairs, recipe), overwrite=True)


ANIMA = checkpoints.ANIMA_TRANSFORMER | {
    "num_attention_heads": 16, "attention_head_dim": 128, "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
}  # fmt: skip
ANIMA_ENCODER = {
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
ZIMAGE_VAE = comfyui_files.ZIMAGE_VAE | {"block_out_channels": (128, 256, 512, 512)}


def neo_anima(models: Path) -> dict[str, Path]:
    """A random Anima of Neo's widths (two blocks), its encoder and its VAE, in their places."""
    network = checkpoints.drawn(AnimaTransformer(**ANIMA), 0)
    adapter = checkpoints.drawn(AnimaTextConditioner(min_sequence_length=0), 1)
    encoder = checkpoints.qwen3.__wrapped__(1024, **ANIMA_ENCODER, head_dim=128)
    tiny = checkpoints.Tiny(network, {"qwen3": encoder, "llm_adapter": adapter})
    denoiser, text = checkpoints.anima_files(models, tiny)
    state = checkpoints.wan_names(checkpoints.drawn(WanDecoder(96, 16), 7))
    vae = checkpoints.save(models / "wan.safetensors", state)
    return _in_places(models, {"denoiser": denoiser, "encoder": text, "vae": vae})


def neo_zimage(models: Path) -> dict[str, Path]:
    """A random Z-Image of Neo's widths (one layer), its encoder and its VAE, in their places."""
    _, made = comfyui_files.zimage_files(models, ZIMAGE_VAE)
    return _in_places(models, made)


def _in_places(models: Path, made: dict[str, Path]) -> dict[str, Path]:
    places = {"denoiser": "Stable-diffusion", "encoder": "text_encoder", "vae": "VAE"}
    (models / "text_encoder").mkdir()
    return {part: path.rename(models / places[part] / path.name) for part, path in made.items()}


SIZES = {"Qwen3_06B": ANIMA_ENCODER, "Qwen3_4B": comfyui_files.ZIMAGE_ENCODER}
FEWER_LAYERS = (
    f"SIZES = {SIZES}"
    + """
import functools, re
from backend.nn.llm import llama
from huggingface_guess import detection

def fewer(name, sizes):
    config, kind = getattr(llama, name + "Config"), getattr(llama, name)
    setattr(llama, name + "Config", functools.partial(config, **sizes))
    make = kind.__init__
    kind.__init__ = lambda self, published: make(self, {})

for name, sizes in SIZES.items():
    fewer(name, sizes)

detect = detection.detect_unet_config

def detected(state_dict, key_prefix, *others):
    config = detect(state_dict, key_prefix, *others)
    if config and config.get("image_model") == "anima":
        blocks = re.compile(re.escape(key_prefix) + r"blocks[.]([0-9]+)[.]")
        numbers = [int(found[1]) for found in map(blocks.match, state_dict) if found]
        config["num_blocks"] = 1 + max(numbers)
    return config

detection.detect_unet_config = detected
"""
)
"""An extension with which Neo takes encoders of our sizes and as many of Anima's blocks as a file
holds."""
