"""PNG files that carry their settings: A1111's `parameters` text, and the same facts as JSON.

Sites and hosts read the text, so it follows A1111's form to the letter; the `dpdmd` chunk is exact.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..errors import OutputError
from .atomic_write import atomic_path

TEXT_KEY = "parameters"
JSON_KEY = "dpdmd"


@dataclass(frozen=True, kw_only=True)
class UsedLora:
    """A LoRA that was applied; `autov3` is the first 12 digits of its tensors' SHA256."""

    name: str
    strength: float = 1.0
    autov3: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """How an image was made.

    Args:
        sampler: as hosts call it ("Euler"); schedule: likewise ("Simple").
        guidance_scale: 1.0 is off.
        model: name of the checkpoint without suffix; model_hash: its AutoV2.
        extra: further "Key: value" pairs for the settings line.
    """

    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    negative: str = ""
    sampler: str = "Euler"
    schedule: str = ""
    model: str = ""
    model_hash: str = ""
    clip_skip: int | None = None
    loras: tuple[UsedLora, ...] = ()
    version: str = ""
    extra: dict[str, str] = dataclasses.field(default_factory=dict)


def parameters_text(info: ImageInfo) -> str:
    """A1111's "parameters" text: prompt, negative prompt, one line of settings."""
    tags = "".join(f" <lora:{lora.name}:{lora.strength:g}>" for lora in info.loras)
    lines = [(info.prompt + tags).strip()]
    if info.negative:
        lines.append(f"Negative prompt: {info.negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _settings(info).items()))
    return "\n".join(lines)


def _settings(info: ImageInfo) -> dict[str, str]:
    hashes = ", ".join(f"{lora.name}: {lora.autov3}" for lora in info.loras if lora.autov3)
    settings = {
        "Steps": str(info.steps),
        "Sampler": info.sampler,
        "Schedule type": info.schedule,
        "CFG scale": f"{info.guidance_scale:g}",
        "Seed": str(info.seed),
        "Size": f"{info.width}x{info.height}",
        "Model hash": info.model_hash,
        "Model": info.model,
        "Clip skip": str(info.clip_skip) if info.clip_skip and info.clip_skip > 1 else "",
        "Lora hashes": hashes,
        **info.extra,
        "Version": info.version,
    }
    return {key: value for key, value in settings.items() if value}


def _quoted(value: str) -> str:
    """The value, as a JSON string where it holds what separates settings."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def save_png(path: Path, image: Image.Image, info: ImageInfo, *, overwrite: bool = False) -> Path:
    """Write the image with its settings, whole or not at all; returns its path."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already. Choose another name, or pass --overwrite.")
    chunks = PngImagePlugin.PngInfo()
    text = parameters_text(info).encode("utf-8", "replace").decode()  # of names that are no text
    chunks.add_text(TEXT_KEY, text)
    chunks.add_text(JSON_KEY, json.dumps(dataclasses.asdict(info)))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return path
