"""Stage `export`: both trained parts as one fp16 file in the layout of a single-file SD3 model.

`model.diffusion_model.` holds the MMDiT under the names of SD3's own code, with q, k and v joined
and with shift and scale in its order (diffusers swaps them in the last modulations).
`first_stage_model.` is TAESD as ComfyUI stores it. The text model stands under a prefix of our own,
because a host would take SD3's names for the full-size encoders.
"""

from __future__ import annotations

import json
from pathlib import Path

import shapes_teacher_denoiser as denoiser
import shapes_teacher_vae as vae
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

CONTEXT_WIDTH, POOLED_WIDTH = 4096, 2048
TEXT_PREFIX = "dpdmd_text_encoder."
SIZE_LIMIT = 16_000_000
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
    for name, value in teacher.text.state_dict().items():
        if not name.endswith("position_ids"):
            name = name.removeprefix("text_model.")
            tensors[f"{TEXT_PREFIX}transformer.text_model.{name}"] = value
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in tensors.items()}
    ids = [0, denoiser.BEGIN_ID, denoiser.END_ID, *denoiser.TOKEN_IDS.values()]
    tensors[f"{TEXT_PREFIX}token_ids"] = torch.tensor(ids, dtype=torch.int64)
    return tensors


def write(folder: Path, target: Path, guidance_scale: float, steps: int) -> int:
    """Write the file and prove that diffusers reads the same weights from it; returns its size."""
    from dpdmd_studio.trainer.engine import shapes

    teacher = denoiser.load(folder)
    tensors = checkpoint(teacher, vae.load(folder))
    _check_round_trip(teacher, tensors)
    facts = {
        "guidance_scale": guidance_scale,
        "steps": steps,
        "resolution": shapes.RESOLUTION,
        "drawing_version": shapes.DRAWING_VERSION,
    }
    title = "DP-DMD Studio shapes teacher (SD3 layout)"
    metadata = {"format": "pt", "modelspec.title": title, "dpdmd.shapes": json.dumps(facts)}
    save_file(tensors, target, metadata)
    size = target.stat().st_size
    if size > SIZE_LIMIT:
        raise RuntimeError(f"{target} has {size} bytes; at most {SIZE_LIMIT} are allowed")
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
