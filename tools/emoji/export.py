"""Stage `export`: a trained flow teacher as one fp16 file, laid out as a single-file SD3 model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from dpdmd_studio.core.families import STATED_KEY
from shapes_teacher_export import TEXT_PREFIX, sd3_names, widened
from shapes_teacher_vae import padded
from torch import Tensor

from . import autoencoder, flow, judge, text

RESOLUTION = 64
SIZE_LIMIT = 28_000_000
CREDITS = (
    "Noto Emoji (Google, Apache-2.0), Twemoji (Twitter, Inc and other contributors, CC BY 4.0), "
    "Fluent Emoji (Microsoft, MIT)"
)


def checkpoint(teacher: flow.EmojiTeacher, taesd: autoencoder.Taesd) -> dict[str, Tensor]:
    """Every tensor of the file, fp16 but for the integer token ids."""
    mmdit = sd3_names(widened(teacher.transformer.state_dict()))
    tensors = {f"model.diffusion_model.{k}": v for k, v in mmdit.items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in padded(taesd).items()}
    tensors["first_stage_model.vae_scale"] = torch.tensor(1.0)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    for name, value in teacher.text.state_dict().items():
        if not name.endswith("position_ids"):
            name = name.removeprefix("text_model.")
            tensors[f"{TEXT_PREFIX}transformer.text_model.{name}"] = value
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in tensors.items()}
    ids = [0, text.BEGIN_ID, text.END_ID, *teacher.rows.ids]
    tensors[f"{TEXT_PREFIX}token_ids"] = torch.tensor(ids, dtype=torch.int64)
    return tensors


def write(folder: Path, target: Path, guidance_scale: float, steps: int) -> int:
    """Write the file and prove that diffusers reads the same weights from it; returns its size."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
    from safetensors.torch import save_file

    teacher = flow.load(folder)
    tensors = checkpoint(teacher, autoencoder.load(folder))
    ours = {k: v.clone() for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    back = convert_sd3_transformer_checkpoint_to_diffusers(ours)
    for name, value in widened(teacher.transformer.state_dict()).items():
        if not torch.equal(back[name], value.cpu().half()):
            raise RuntimeError(f"{name} does not survive the conversion")
    facts = {
        "world": "emoji",
        "guidance_scale": guidance_scale,
        "steps": steps,
        "resolution": RESOLUTION,
        "credits": CREDITS,
    }
    title = "DP-DMD Studio emoji teacher (SD3 layout)"
    metadata = {
        "format": "pt",
        "modelspec.title": title,
        "modelspec.license": "CC-BY-4.0",
        "modelspec.author": f"DP-DMD Studio; pictures: {CREDITS}",
        STATED_KEY: json.dumps(facts),
    }
    save_file(tensors, target, metadata)
    if (size := target.stat().st_size) > SIZE_LIMIT:
        raise RuntimeError(f"{target} has {size} bytes; at most {SIZE_LIMIT} are allowed")
    return size


def record(folder: Path, target: Path) -> dict:
    """What the file was made by and what it was found to be, for the .json beside it."""
    from shapes_teacher_common import file_facts

    found: dict = {
        "command": "python tools/make_emoji_teacher.py STAGE --cache CACHE --folder FOLDER",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }
    batches = {
        "autoencoder": (autoencoder.BATCH, autoencoder.PEAK),
        "judge": (judge.BATCH, judge.PEAK),
    }
    rounds = range(1, 1 + len(flow.ROUNDS))
    batches |= {f"flow-{number}": (flow.BATCH, flow.PEAK) for number in rounds}
    for name, (batch, peak) in batches.items():
        facts = file_facts(folder / name)
        found[name] = {
            "updates": facts["update"],
            "batch": batch,
            "peak_learning_rate": peak,
            "seconds": round(facts["seconds"]),
            "loss": facts["curve"][:: max(1, len(facts["curve"]) // 20)],
        }
    for name in ("judge", "measure"):
        found[f"{name}_figures"] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return found
