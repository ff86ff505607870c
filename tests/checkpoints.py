"""Tiny random checkpoints in the real file layouts.

The name tables here are written independently of the package's own (closed formulas instead of a
walk over the blocks), so that a test which loads these files checks one against the other. Modules
are made once and shared: treat them as read-only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

State = dict[str, Tensor]
VOCABULARY = 49408

SD1_UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32, "attention_head_dim": 8,
}  # fmt: skip
SDXL_UNET = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2), "attention_head_dim": (1, 1),
    "use_linear_projection": True, "cross_attention_dim": 96,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 64 + 6 * 256,
}  # fmt: skip
SD3_TRANSFORMER = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2,
    "attention_head_dim": 64, "num_attention_heads": 1, "joint_attention_dim": 128,
    "caption_projection_dim": 64, "pooled_projection_dim": 96, "pos_embed_max_size": 12,
}  # fmt: skip
SD35_TRANSFORMER = {**SD3_TRANSFORMER, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
SD35_LARGE_TRANSFORMER = {**SD3_TRANSFORMER, "qk_norm": "rms_norm", "num_layers": 25}
ANIMA_TRANSFORMER = {
    "in_channels": 17, "out_channels": 16, "num_attention_heads": 4, "attention_head_dim": 24,
    "num_layers": 2, "mlp_ratio": 4, "text_embed_dim": 64, "adaln_lora_dim": 16,
}  # fmt: skip
ANIMA_ADAPTER = {
    "source_dim": 32, "target_dim": 64, "model_dim": 64, "num_layers": 1,
    "num_attention_heads": 16, "target_vocab_size": 32128,
}  # fmt: skip
ZIMAGE_TRANSFORMER = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": 32,
    "axes_dims": [4, 6, 6],
}
QWEN3_VOCABULARY = 151936
KL_VAE = {
    "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


@dataclass
class Tiny:
    """The modules a file was made of."""

    denoiser: nn.Module
    encoders: dict[str, nn.Module] = field(default_factory=dict)
    vae: nn.Module | None = None


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with small random values everywhere, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not name.endswith("pos_embed"):
            noise = torch.randn(value.shape, generator=generator) * 0.1
            value.copy_(noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.half().float().eval()  # representable in fp16


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module with random values that keep the scale of what goes through; none is left out."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith((".bias", ".gamma")) or value.dim() == 1:
            value.copy_((not name.endswith(".bias")) + 0.2 * noise)
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
    return module.half().float().eval()


@cache
def clip(width: int, *, projected: bool = False, layers: int = 3, seed: int = 1) -> nn.Module:
    """A tiny CLIP text encoder; `projected` makes it CLIP-G's kind."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=max(1, width // 64), projection_dim=width,
        hidden_act="gelu" if projected else "quick_gelu", eos_token_id=49407,
    )  # fmt: skip
    return randomised((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


@cache
def t5(width: int = 128) -> nn.Module:
    """A tiny T5 encoder."""
    config = T5Config(
        vocab_size=32128, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return randomised(T5EncoderModel(config), 3)


@cache
def kl_vae(latent_channels: int = 4, *, quant_conv: bool = True) -> AutoencoderKL:
    """A tiny KL VAE that enlarges twofold."""
    vae = AutoencoderKL(
        **KL_VAE, latent_channels=latent_channels,
        use_quant_conv=quant_conv, use_post_quant_conv=quant_conv,
    )  # fmt: skip
    return randomised(vae, 4)  # type: ignore[return-value]


@cache
def sd1() -> Tiny:
    """The modules of a tiny SD 1.x."""
    return Tiny(randomised(UNet2DConditionModel(**SD1_UNET)), {"clip_l": clip(32)}, kl_vae())


@cache
def sdxl() -> Tiny:
    """The modules of a tiny SDXL."""
    encoders = {"clip_l": clip(32), "clip_g": clip(64, projected=True, seed=2)}
    return Tiny(randomised(UNet2DConditionModel(**SDXL_UNET)), encoders, kl_vae())


@cache
def sd3(*, medium35: bool = False, with_t5: bool = True) -> Tiny:
    """The modules of a tiny SD3 or SD3.5 medium."""
    config = SD35_TRANSFORMER if medium35 else SD3_TRANSFORMER
    encoders = {"clip_l": clip(32), "clip_g": clip(64, projected=True, seed=2)}
    if with_t5:
        encoders["t5xxl"] = t5()
    return Tiny(randomised(SD3Transformer2DModel(**config)), encoders, kl_vae(16, quant_conv=False))


@cache
def sd35_large() -> Tiny:
    """The modules of a tiny SD3.5 large."""
    tiny = sd3(with_t5=False)
    network = randomised(SD3Transformer2DModel(**SD35_LARGE_TRANSFORMER))
    return Tiny(network, tiny.encoders, tiny.vae)


@cache
def qwen3(width: int = 32, **others: int) -> nn.Module:
    """A tiny Qwen3; it takes most of its few megabytes for its table of tokens."""
    sizes = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
             "num_hidden_layers": 2, "intermediate_size": 2 * width} | others  # fmt: skip
    config = Qwen3Config(
        vocab_size=QWEN3_VOCABULARY, hidden_size=width, use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **sizes,
    )  # fmt: skip
    return drawn(Qwen3Model(config), 6)


@cache
def wan_vae() -> nn.Module:
    """The decoding half of a tiny VAE of Wan's kind, as we name its parts."""
    from dpdmd_studio.trainer.loading.vae import WanDecoder

    return drawn(WanDecoder(8, 16), 7)


def wan_names(vae: nn.Module) -> State:
    """Such a VAE's tensors under Wan's names."""
    levels = vae.decoder.up_blocks
    firsts = [sum(len(level.resnets) + 1 for level in levels[:i]) for i in range(len(levels))]
    out = {}
    for name, value in vae.state_dict().items():
        if match := re.match(r"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.", name):
            place = f"decoder.upsamples.{firsts[int(match[1])] + int(match[2])}."
            name = place + name[match.end() :]
        elif match := re.match(r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.", name):
            level = int(match[1])
            name = f"decoder.upsamples.{firsts[level] + len(levels[level].resnets)}."
            name += "resample.1.weight" if value.dim() > 1 else "resample.1.bias"
        name = name.replace("mid_block.resnets.0.", "middle.0.")
        name = name.replace("mid_block.attentions.0.", "middle.1.")
        name = name.replace("mid_block.resnets.1.", "middle.2.")
        parts = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3",
                 "conv2": "residual.6", "conv_shortcut": "shortcut"}  # fmt: skip
        head, _, leaf = name.rpartition(".")
        block, _, part = head.rpartition(".")
        if part in parts:
            name = f"{block}.{parts[part]}.{leaf}"
        name = name.replace("post_quant_conv.", "conv2.").replace("conv_in.", "conv1.")
        out[name.replace("norm_out.", "head.0.").replace("conv_out.", "head.2.")] = value
    return out


@cache
def anima() -> Tiny:
    """The modules of a tiny Anima."""
    from dpdmd_studio.trainer.families.anima import AnimaTransformer

    adapter = drawn(AnimaTextConditioner(**ANIMA_ADAPTER), 5)
    encoders = {"qwen3": qwen3(), "llm_adapter": adapter}
    return Tiny(drawn(AnimaTransformer(**ANIMA_TRANSFORMER), 0), encoders, wan_vae())


def anima_names(transformer: nn.Module) -> State:
    """A transformer's tensors under Cosmos-Predict2's names."""
    out = {}
    for name, value in transformer.state_dict().items():
        for old, new in ANIMA_NAMES:
            name = re.sub(old, new, name)
        out[name] = value
    return out


ANIMA_NAMES = (
    (r"^patch_embed\.proj", "x_embedder.proj.1"),
    (r"^time_embed\.t_embedder", "t_embedder.1"), (r"^time_embed\.norm", "t_embedding_norm"),
    (r"^norm_out\.linear_", "final_layer.adaln_modulation."), (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "blocks"), (r"norm1\.linear_", "adaln_modulation_self_attn."),
    (r"norm2\.linear_", "adaln_modulation_cross_attn."),
    (r"norm3\.linear_", "adaln_modulation_mlp."),
    (r"attn1", "self_attn"), (r"attn2", "cross_attn"), (r"\.to_([qkv])\.", r".\1_proj."),
    (r"to_out\.0", "output_proj"), (r"norm_([qk])", r"\1_norm"),
    (r"ff\.net\.0\.proj", "mlp.layer1"), (r"ff\.net\.2", "mlp.layer2"),
)  # fmt: skip


def anima_files(folder: Path, tiny: Tiny | None = None, **how: torch.dtype) -> tuple[Path, Path]:
    """(transformer with its adapter, Qwen3) as they are published: a file each."""
    tiny = anima() if tiny is None else tiny
    state = {f"net.{name}": value for name, value in anima_names(tiny.denoiser).items()}
    adapter = tiny.encoders["llm_adapter"].state_dict()
    state |= {f"net.llm_adapter.{name}": value for name, value in adapter.items()}
    encoder = tiny.encoders["qwen3"].state_dict()
    named = {f"model.{name}": value for name, value in encoder.items()}
    return (
        save(folder / "anima.safetensors", state, **how),
        save(folder / "qwen_3_06b_base.safetensors", named, **how),
    )


def anima_folder(folder: Path) -> Path:
    """The folder, with a tiny Anima in it as it is published, a file each, and one file of all."""
    tiny = anima()
    anima_files(folder)
    save(folder / "vae.safetensors", wan_names(tiny.vae))
    save(folder / "whole.safetensors", file_state(tiny))
    return folder


@cache
def zimage() -> Tiny:
    """The modules of a tiny Z-Image."""
    from dpdmd_studio.trainer.families.zimage import ZImageTransformer

    network = drawn(ZImageTransformer(**ZIMAGE_TRANSFORMER), 0)
    return Tiny(network, {"qwen3": qwen3()}, kl_vae(16, quant_conv=False))


def zimage_names(transformer: nn.Module) -> State:
    """A transformer's tensors under Z-Image's own names, q, k and v in one."""
    state, out = transformer.state_dict(), {}
    for name, value in state.items():
        if name.endswith((".to_k.weight", ".to_v.weight")):
            continue
        if name.endswith(".to_q.weight"):
            block = name.removesuffix("to_q.weight")
            value = torch.cat([state[f"{block}to_{part}.weight"] for part in "qkv"])
            name = f"{block}qkv.weight"
        name = name.replace("all_x_embedder.2-1", "x_embedder").replace("to_out.0", "out")
        name = re.sub(r"norm_([qk])\.", r"\1_norm.", name)
        out[name.replace("all_final_layer.2-1", "final_layer")] = value
    return out


def zimage_files(folder: Path, tiny: Tiny | None = None, **how: torch.dtype) -> tuple[Path, Path]:
    """(transformer, Qwen3) as they are published: a file each."""
    tiny = zimage() if tiny is None else tiny
    state = zimage_names(tiny.denoiser)
    named = {f"model.{name}": value for name, value in tiny.encoders["qwen3"].state_dict().items()}
    return (
        save(folder / "z_image.safetensors", state, **how),
        save(folder / "qwen_3_4b.safetensors", named, **how),
    )


def zimage_folder(folder: Path) -> Path:
    """The folder, with a tiny Z-Image in it as it is published, a file each, and one of all."""
    tiny = zimage()
    zimage_files(folder)
    save(folder / "ae.safetensors", vae_names(tiny.vae))
    save(folder / "whole.safetensors", file_state(tiny))
    return folder


def file_state(tiny: Tiny) -> State:
    """All tensors of a single-file checkpoint, names as in the wild."""
    if list(tiny.encoders) == ["qwen3"]:
        state = {f"model.diffusion_model.{n}": v for n, v in zimage_names(tiny.denoiser).items()}
        encoder, place = tiny.encoders["qwen3"], ZIMAGE_PLACES["qwen3"]
        state |= {place + name: value for name, value in encoder.state_dict().items()}
        return state | {f"vae.{name}": value for name, value in vae_names(tiny.vae).items()}
    if "llm_adapter" in tiny.encoders:
        state = {f"model.diffusion_model.{n}": v for n, v in anima_names(tiny.denoiser).items()}
        for kind, encoder in tiny.encoders.items():
            state |= {ANIMA_PLACES[kind] + n: v for n, v in encoder.state_dict().items()}
        vae = {} if tiny.vae is None else wan_names(tiny.vae)
        return state | {f"first_stage_model.{name}": value for name, value in vae.items()}
    if isinstance(tiny.denoiser, SD3Transformer2DModel):
        denoiser, places = sd3_names(tiny.denoiser), SD3_PLACES
    else:
        denoiser = unet_names(tiny.denoiser)
        places = SDXL_PLACES if "clip_g" in tiny.encoders else SD1_PLACES
    state = {f"model.diffusion_model.{name}": value for name, value in denoiser.items()}
    for kind, encoder in tiny.encoders.items():
        fused = places[kind].endswith(".model.")
        names = openclip_names(encoder) if fused else clip_names(encoder)
        state |= {places[kind] + name: value for name, value in names.items()}
    if tiny.vae is not None:
        state |= {f"first_stage_model.{n}": v for n, v in vae_names(tiny.vae).items()}
    return state


SD1_PLACES = {"clip_l": "cond_stage_model.transformer."}
SDXL_PLACES = {
    "clip_l": "conditioner.embedders.0.transformer.",
    "clip_g": "conditioner.embedders.1.model.",
}
ANIMA_PLACES = {
    "qwen3": "cond_stage_model.qwen3_06b.transformer.model.",
    "llm_adapter": "model.diffusion_model.llm_adapter.",
}
ZIMAGE_PLACES = {"qwen3": "text_encoders.qwen3_4b.transformer.model."}
SD3_PLACES = {kind: f"text_encoders.{kind}.transformer." for kind in ("clip_l", "clip_g", "t5xxl")}


def save(
    path: Path, state: State, *, dtype: torch.dtype = torch.float16, metadata: dict | None = None
) -> Path:
    """Write a file with every floating-point tensor in `dtype`."""
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).clone().contiguous()
        for name, value in state.items()
    }
    save_file(stored, path, metadata=metadata)
    return path


def unet_names(unet: nn.Module) -> State:
    """A UNet's tensors under LDM names."""
    step = unet.config.layers_per_block + 1
    attends = ["CrossAttn" in name for name in unet.config.up_block_types]

    def block(match: re.Match[str]) -> str:
        side, level, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * step}.0.op."
        if kind == "upsamplers":
            return f"output_blocks.{level * step + step - 1}.{1 + attends[level]}.conv."
        number = level * step + layer + (1 if side == "down" else 0)
        block = "input_blocks" if side == "down" else "output_blocks"
        return f"{block}.{number}.{0 if kind == 'resnets' else 1}."

    def rename(name: str) -> str:
        name = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(?:conv\.(?=\w+$))?", block, name)
        for old, new in UNET_NAMES:
            name = re.sub(old, new, name)
        return name

    return {rename(name): value for name, value in unet.state_dict().items()}


UNET_NAMES = (
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in\.", "input_blocks.0.0."), (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"(put_blocks\.\d+|middle_block)\.(\d)\.norm1", r"\1.\2.in_layers.0"),
    (r"\.conv1\.", ".in_layers.2."), (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(put_blocks\.\d+|middle_block)\.(\d)\.norm2", r"\1.\2.out_layers.0"),
    (r"\.conv2\.", ".out_layers.3."), (r"\.conv_shortcut\.", ".skip_connection."),
)  # fmt: skip


def clip_names(encoder: nn.Module) -> State:
    """A text encoder's tensors under the names of transformers 4, as files have them."""
    state = {n: v for n, v in encoder.state_dict().items() if n != "encoder.embed_tokens.weight"}
    bare = any(name.startswith("embeddings.") for name in state)
    return {("text_model." if bare else "") + name: value for name, value in state.items()}


def openclip_names(encoder: nn.Module) -> State:
    """A CLIP-G's tensors under OpenCLIP's names, q/k/v fused."""
    state, out = encoder.state_dict(), {}
    for name, value in state.items():
        match = re.match(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if not match:
            continue
        index, module, leaf = match.groups()
        block = f"transformer.resblocks.{index}"
        if module == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            out[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
        elif not module.endswith(("k_proj", "v_proj")):
            for old, new in (("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
                             ("mlp.fc2", "mlp.c_proj"),
                             ("self_attn", "attn")):  # fmt: skip
                module = module.replace(old, new)
            out[f"{block}.{module}.{leaf}"] = value
    out["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    out["ln_final.weight"] = state["text_model.final_layer_norm.weight"]
    out["ln_final.bias"] = state["text_model.final_layer_norm.bias"]
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    out["logit_scale"] = torch.tensor(4.6)
    return out


def sd3_names(transformer: nn.Module) -> State:
    """An MMDiT's tensors under Stability's names, q/k/v fused, the last modulations as shipped."""
    state, out = transformer.state_dict(), {}
    last = transformer.config.num_layers - 1
    for name, value in state.items():
        if name.endswith(("to_k.weight", "to_k.bias", "to_v.weight", "to_v.bias")) or re.search(
            r"add_[kv]_proj", name
        ):
            continue
        if match := re.search(r"(to_q|add_q_proj)\.", name):
            others = [match[1].replace("q", letter) for letter in "qkv"]
            value = torch.cat([state[name.replace(match[1], other)] for other in others])
        if name.startswith((f"transformer_blocks.{last}.norm1_context", "norm_out")):
            scale, shift = value.chunk(2)
            value = torch.cat([shift, scale])
        for old, new in SD3_NAMES:
            name = re.sub(old, new, name)
        out[name] = value
    return out


SD3_NAMES = (
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"attn\.add_q_proj", "context_block.attn.qkv"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"attn\.norm_added_", "context_block.attn.ln_"), (r"\.(attn2?)\.norm_", r".x_block.\1.ln_"),
    (r"\.(attn2?)\.to_q", r".x_block.\1.qkv"), (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"), (r"ff\.net\.2", "x_block.mlp.fc2"),
)  # fmt: skip


def vae_names(vae: nn.Module) -> State:
    """A KL VAE's tensors under LDM names; attention projections as 1x1 convolutions."""
    levels, out = len(vae.config.block_out_channels), {}
    for name, value in vae.state_dict().items():
        if re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", name):
            value = value[:, :, None, None]
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        for old, new in VAE_NAMES:
            name = re.sub(old, new, name)
        out[name] = value
    return out


VAE_NAMES = (
    (r"down_blocks\.", "down."), (r"downsamplers\.0", "downsample"), (r"upsamplers\.0", "upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"\.resnets\.", ".block."),
    (r"group_norm", "norm"), (r"to_out\.0", "proj_out"), (r"\.to_([qkv])\.", r".\1."),
    (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
)  # fmt: skip


def save_folder(path: Path, tiny: Tiny) -> Path:
    """Write a diffusers folder."""
    if "qwen3" in tiny.encoders:
        return _zimage_diffusers(path, tiny)
    flow = isinstance(tiny.denoiser, SD3Transformer2DModel)
    index: dict[str, object] = {"_class_name": "StableDiffusion3Pipeline" if flow else "Pipeline"}
    tiny.denoiser.save_pretrained(path / ("transformer" if flow else "unet"))
    index["transformer" if flow else "unet"] = ["diffusers", type(tiny.denoiser).__name__]
    for encoder, name in zip(tiny.encoders.values(), ENCODER_FOLDERS, strict=False):
        encoder.save_pretrained(path / name)
        index[name] = ["transformers", type(encoder).__name__]
    if tiny.vae is not None:
        tiny.vae.save_pretrained(path / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def _zimage_diffusers(path: Path, tiny: Tiny) -> Path:
    """Its encoder is a whole language model's."""
    kind = "ZImageTransformer2DModel"
    tiny.denoiser.save_pretrained(path / "transformer")
    config = json.loads((path / "transformer" / "config.json").read_text())
    (path / "transformer" / "config.json").write_text(json.dumps(config | {"_class_name": kind}))
    (path / "text_encoder").mkdir()
    encoder = {f"model.{n}": v for n, v in tiny.encoders["qwen3"].state_dict().items()}
    save(path / "text_encoder" / "model.safetensors", encoder)
    (path / "text_encoder" / "config.json").write_text("{}")
    tiny.vae.save_pretrained(path / "vae")
    index = {
        "_class_name": "ZImagePipeline", "transformer": ["diffusers", kind],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (path / "model_index.json").write_text(json.dumps(index))
    return path


ENCODER_FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
