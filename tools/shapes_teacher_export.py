"""Stage `export`: both trained parts as one fp16 file in the layout of a single-file SD3 model.

`model.diffusion_model.` holds the MMDiT under the names of SD3's own code, with q, k and v joined
and with shift and scale in its order (diffusers swaps them in the last modulations).
`first_stage_model.` is TAESD as ComfyUI stores it. The text model stands under a prefix of our own,
because a host would take SD3's names for the full-size encoders.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import shapes_teacher_denoiser as denoiser
import shapes_teacher_vae as vae
import torch
from safetensors.torch import load_file, save_file
from shapes_teacher_common import device, part
from torch import Tensor
from torch.nn import functional

CONTEXT_WIDTH, POOLED_WIDTH = 4096, 2048
TEXT_PREFIX = "dpdmd_text_encoder."
SIZE_LIMIT = 16_000_000
ROUND_TRIP = 200
"""Images encoded or decoded at a time."""
OUTER = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
INNER = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's state with zero columns up to SD3's context and pooled widths."""
    widths = {
        "context_embedder.weight": CONTEXT_WIDTH,
        "time_text_embed.text_embedder.linear_1.weight": POOLED_WIDTH,
    }
    return {
        name: functional.pad(value, (0, widths[name] - value.shape[1])) if name in widths else value
        for name, value in state.items()
    }


def sd3_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers SD3 transformer's tensors under the names of SD3's own code."""
    rest, result = dict(state), {}
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    for block in range(depth):
        old, new = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
        for joined, parts in JOINED.items():
            for kind in ("weight", "bias"):
                pieces = [rest.pop(f"{old}{part}.{kind}") for part in parts]
                result[f"{new}{joined}.{kind}"] = torch.cat(pieces)
        for inner, name in INNER.items():
            for kind in ("weight", "bias"):
                if (value := rest.pop(f"{old}{inner}.{kind}", None)) is not None:
                    last = inner == "norm1_context.linear" and block == depth - 1
                    result[f"{new}{name}.{kind}"] = _swap_halves(value) if last else value
    for kind in ("weight", "bias"):
        final = rest.pop(f"norm_out.linear.{kind}")
        result[f"final_layer.adaLN_modulation.1.{kind}"] = _swap_halves(final)
    for outer, name in OUTER.items():
        for tail in (".weight", ".bias", ""):
            if (value := rest.pop(outer + tail, None)) is not None:
                result[name + tail] = value
    assert not rest, f"tensors without a name in SD3's layout: {sorted(rest)}"
    return result


def _swap_halves(value: Tensor) -> Tensor:
    """(scale, shift) as diffusers keeps them to (shift, scale) as SD3 does."""
    scale, shift = value.chunk(2, dim=0)
    return torch.cat([shift, scale], dim=0)


def checkpoint(teacher: denoiser.Teacher, autoencoder: vae.SlimTaesd) -> dict[str, Tensor]:
    """Every tensor of the file, fp16 but for the integer token ids."""
    mmdit = sd3_names(widened(teacher.transformer.state_dict()))
    tensors = {f"model.diffusion_model.{k}": v for k, v in mmdit.items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae.padded(autoencoder).items()}
    tensors["first_stage_model.vae_scale"] = torch.tensor(1.0)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    return finished(tensors, teacher.text)


def finished(tensors: dict[str, Tensor], text: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors in fp16, with those of the text model and the tokens that it knows."""
    tensors = dict(tensors)
    for name, value in text.state_dict().items():
        if not name.endswith("position_ids"):
            name = name.removeprefix("text_model.")
            tensors[f"{TEXT_PREFIX}transformer.text_model.{name}"] = value
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in tensors.items()}
    ids = [0, denoiser.BEGIN_ID, denoiser.END_ID, *denoiser.TOKEN_IDS.values()]
    tensors[f"{TEXT_PREFIX}token_ids"] = torch.tensor(ids, dtype=torch.int64)
    return tensors


def write(folder: Path, target: Path, guidance_scale: float, steps: int) -> int:
    """Write the file and prove that diffusers reads the same weights from it; returns its size."""
    teacher = denoiser.load(folder)
    tensors = checkpoint(teacher, vae.load(folder))
    _check_round_trip(teacher, tensors)
    return save(tensors, target, "SD3", (guidance_scale, steps), SIZE_LIMIT)


def save(
    tensors: dict[str, Tensor], target: Path, layout: str, sampling: tuple[float, int], limit: int
) -> int:
    """Write the tensors with what the file has to say of itself; returns its size in bytes."""
    import shapes_scenes
    from dpdmd_studio.trainer.toys import shapes

    facts = {
        "guidance_scale": sampling[0],
        "steps": sampling[1],
        "resolution": shapes.RESOLUTION,
        "drawing_version": shapes_scenes.DRAWING_VERSION,
    }
    title = f"DP-DMD Studio shapes teacher ({layout} layout)"
    metadata = {"format": "pt", "modelspec.title": title, "dpdmd.shapes": json.dumps(facts)}
    save_file(tensors, target, metadata)
    size = target.stat().st_size
    if size > limit:
        raise RuntimeError(f"{target} has {size} bytes; at most {limit} are allowed")
    return size


def _check_round_trip(teacher: denoiser.Teacher, tensors: dict[str, Tensor]) -> None:
    """Diffusers' own conversion must give back the transformer's tensors, bit for bit in fp16."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    ours = {k: v.clone() for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    back = convert_sd3_transformer_checkpoint_to_diffusers(ours)
    wanted = widened(teacher.transformer.state_dict())
    assert set(back) == set(wanted), sorted(set(back) ^ set(wanted))
    for name, value in wanted.items():
        if not torch.equal(back[name], value.cpu().half()):
            raise RuntimeError(f"{name} does not survive the conversion")


class Models:
    """Teacher and diffusers' autoencoder out of the written file, in fp32 on `device()`."""

    latent_shape = (vae.LATENT_CHANNELS, 8, 8)

    def __init__(self, path: Path) -> None:
        from diffusers import AutoencoderTiny
        from diffusers.loaders.single_file_utils import (
            convert_sd3_transformer_checkpoint_to_diffusers,
        )

        tensors = {k: v.float() for k, v in load_file(path).items()}
        mmdit = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
        wide = convert_sd3_transformer_checkpoint_to_diffusers(mmdit)
        for name in ("context_embedder", "time_text_embed.text_embedder.linear_1"):
            wide[f"{name}.weight"] = wide[f"{name}.weight"][:, : denoiser.TEXT_WIDTH].clone()
        teacher = denoiser.Teacher()
        teacher.transformer.load_state_dict(wide)
        load_text(teacher.text, tensors)
        autoencoder = AutoencoderTiny(latent_channels=vae.LATENT_CHANNELS)
        renamed = {}
        for name, value in part(tensors, "first_stage_model.taesd_").items():
            side, index, rest = name.split(".", 2)
            renamed[f"{side}.layers.{int(index) - (side == 'decoder')}.{rest}"] = value
        autoencoder.load_state_dict(renamed)
        self.teacher = teacher.to(device()).eval()
        self.autoencoder = autoencoder.to(device()).eval()

    def latents(self, texts: list[str], noise: Tensor, steps: int, scale: float) -> Tensor:
        """Guided samples that start from the noise (N, C, h, w)."""
        return denoiser.sample(self.teacher, texts, noise, steps, scale)

    @torch.inference_mode()
    def images(self, latents: Tensor) -> np.ndarray:
        """uint8 images of latents (N, C, h, w), as a host decodes them."""
        space = latents / vae.LATENT_SCALE + vae.LATENT_SHIFT
        return vae.to_images(self.autoencoder.decode(space).sample / 2 + 0.5)

    @torch.inference_mode()
    def redrawn(self, scenes, plans, drawn: np.ndarray) -> np.ndarray:
        """The images encoded and decoded."""
        seen = torch.from_numpy(drawn).to(device()).permute(0, 3, 1, 2).float() / 127.5 - 1
        space = torch.cat([self.autoencoder.encode(x).latents for x in seen.split(ROUND_TRIP)])
        made = [self.autoencoder.decode(z).sample for z in space.split(ROUND_TRIP)]
        return vae.to_images(torch.cat(made) / 2 + 0.5)


def load_text(text: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill the text model from the file's tensors."""
    stored = part(tensors, f"{TEXT_PREFIX}transformer.")
    if next(iter(text.state_dict())).startswith("embeddings."):
        stored = {k.removeprefix("text_model."): v for k, v in stored.items()}
    text.load_state_dict(stored)
