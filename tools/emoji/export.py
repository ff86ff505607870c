"""Stages `export` and `eps-export`: a trained teacher as one fp16 file, laid out as SD3 or SD 1.x.

The text model stands under a prefix of our own: a host would take SD's names for the full-size
encoders. The SD 1.x file holds no encoder of images: nothing needs one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from dpdmd_studio.core.families import STATED_KEY
from shapes_teacher_export import TEXT_PREFIX, sd3_names, widened
from shapes_teacher_unet_export import DECODER, DENOISER, as_diffusers, ldm_names, padded_decoder
from shapes_teacher_vae import padded
from torch import Tensor

from . import autoencoder, eps, flow, judge, text

RESOLUTION = 64
SIZE_LIMITS = {"SD3": 28_000_000, "SD1": 18_000_000}
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
    return _finished(tensors, teacher)


def eps_checkpoint(teacher: eps.EpsTeacher, taesd: autoencoder.Taesd) -> dict[str, Tensor]:
    """The same in SD 1.x's layout, with the decoder alone."""
    unet = ldm_names(teacher.unet.state_dict(), eps.UNET)
    tensors = {f"{DENOISER}{k}": v for k, v in unet.items()}
    tensors |= {f"{DECODER}{k}": v for k, v in padded_decoder(taesd.state_dict()).items()}
    return _finished(tensors, teacher)


def _finished(
    tensors: dict[str, Tensor], teacher: flow.EmojiTeacher | eps.EpsTeacher
) -> dict[str, Tensor]:
    """The tensors in fp16, with those of the text model and the tokens that it knows."""
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

    teacher = flow.load(folder)
    tensors = checkpoint(teacher, autoencoder.load(folder))
    ours = {k: v.clone() for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    back = convert_sd3_transformer_checkpoint_to_diffusers(ours)
    _check_same(back, widened(teacher.transformer.state_dict()))
    return _save(tensors, target, "SD3", (guidance_scale, steps, RESOLUTION))


def write_eps(folder: Path, target: Path, guidance_scale: float, steps: int) -> int:
    """The same for the teacher that predicts noise."""
    teacher = eps.load(folder)
    tensors = eps_checkpoint(teacher, autoencoder.load(folder, narrow=True))
    _check_same(as_diffusers(tensors, eps.UNET), teacher.unet.state_dict())
    return _save(tensors, target, "SD1", (guidance_scale, steps, eps.RESOLUTION))


def _check_same(back: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        if not torch.equal(back[name], value.cpu().half()):
            raise RuntimeError(f"{name} does not survive the conversion")


def _save(
    tensors: dict[str, Tensor], target: Path, layout: str, drawn: tuple[float, int, int]
) -> int:
    from safetensors.torch import save_file

    guidance_scale, steps, resolution = drawn
    facts = {
        "world": "emoji",
        "guidance_scale": guidance_scale,
        "steps": steps,
        "resolution": resolution,
        "credits": CREDITS,
    }
    metadata = {
        "format": "pt",
        "modelspec.title": f"DP-DMD Studio emoji teacher ({layout} layout)",
        "modelspec.license": "CC-BY-4.0",
        "modelspec.author": f"DP-DMD Studio; pictures: {CREDITS}",
        STATED_KEY: json.dumps(facts),
    }
    save_file(tensors, target, metadata)
    if (size := target.stat().st_size) > SIZE_LIMITS[layout]:
        raise RuntimeError(f"{target} has {size} bytes; at most {SIZE_LIMITS[layout]} are allowed")
    return size


def record(folder: Path, target: Path) -> dict:
    """What the file was made by and what it was found to be, for the .json beside it."""
    batches = {
        "autoencoder": (autoencoder.BATCH, autoencoder.PEAK),
        "judge": (judge.BATCH, judge.PEAK),
    }
    rounds = range(1, 1 + len(flow.ROUNDS))
    batches |= {f"flow-{number}": (flow.BATCH, flow.PEAK) for number in rounds}
    return _recorded(folder, target, batches, ("judge", "measure"))


def record_eps(folder: Path, target: Path) -> dict:
    """The same for the teacher that predicts noise."""
    batches = {"eps-autoencoder": (autoencoder.BATCH, autoencoder.PEAK)}
    rounds = range(1, 1 + len(eps.ROUNDS))
    batches |= {f"eps-{number}": (eps.BATCH, eps.PEAK) for number in rounds}
    return _recorded(folder, target, batches, ("eps-measure",))


def _recorded(
    folder: Path,
    target: Path,
    batches: dict[str, tuple[int, float]],
    figures: tuple[str, ...],
) -> dict:
    from shapes_teacher_common import file_facts

    found: dict = {
        "command": "python tools/make_emoji_teacher.py STAGE --cache CACHE --folder FOLDER",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }
    for name, (batch, peak) in batches.items():
        facts = file_facts(folder / name)
        found[name] = {
            "updates": facts["update"],
            "batch": batch,
            "peak_learning_rate": peak,
            "seconds": round(facts["seconds"]),
            "loss": facts["curve"][:: max(1, len(facts["curve"]) // 20)],
        }
    for name in figures:
        found[f"{name.removeprefix('eps-')}_figures"] = json.loads(
            (folder / f"{name}.json").read_text("utf-8")
        )
    return found
