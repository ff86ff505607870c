"""What images look like, as unit vectors: the features that diversity is measured in.

Three sources: the built-in layout feature, which needs no network; EfficientNet-Lite0, which knows
photographs and comes with the worker's environment; or a local DINO or CLIP folder that the user
names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...core.errors import SettingsError
from ...core.images.diversity import LAYOUT_TITLE, layout_vectors
from . import efficientnet

log = logging.getLogger("dpdmd_studio.evaluation")
BATCH = 16
EFFICIENTNET_TITLE = "EfficientNet-Lite0 (ImageNet)"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

Images = Sequence[np.ndarray]


@dataclass(frozen=True)
class ImageFeatures:
    """A way to turn images into vectors.

    Attributes:
        title: what to call it in a report.
        of: uint8 images (H, W, 3) to unit vectors, float32, shape (N, D).
        prompt_score: mean cosine of a CLIP between images and one prompt, where there is a CLIP.
    """

    title: str
    of: Callable[[Images], Tensor]
    prompt_score: Callable[[str, Images], float] | None = None


def layout_features() -> ImageFeatures:
    """The built-in feature: where which colours and edges are (`layout_vectors`)."""
    return ImageFeatures(LAYOUT_TITLE, layout_vectors)


def imagenet_features(device: torch.device) -> ImageFeatures:
    """EfficientNet-Lite0's last features before its classes: what is shown, sharpness and texture.

    Raises:
        SettingsError: the worker's environment lacks the network.
    """
    layout = torch.channels_last  # convolutions of a CPU take half the time
    network = efficientnet.load().to(device)
    side = efficientnet.SIDE
    mean, deviation = (
        torch.tensor(numbers).view(3, 1, 1)
        for numbers in (IMAGENET["image_mean"], IMAGENET["image_std"])
    )

    def prepared(image: np.ndarray) -> Tensor:
        resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        return (pixels - mean) / deviation

    @torch.no_grad()
    def of(images: Images) -> Tensor:
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        stacked = (torch.stack([*map(prepared, batch)]) for batch in batches)
        found = [network.features(each.to(device, memory_format=layout)) for each in stacked]
        return functional.normalize(torch.cat(found).float(), dim=-1).cpu()

    return ImageFeatures(EFFICIENTNET_TITLE, of)


def perceptual_features() -> ImageFeatures | None:
    """EfficientNet-Lite0's features where it is installed, else None, and the log says so.

    On the CPU: a card that is full must not cost a measurement.
    """
    try:
        return imagenet_features(torch.device("cpu"))
    except SettingsError as error:
        log.info("Measured in the layout of colours and edges alone. %s", error)
        return None


def folder_features(folder: Path, device: torch.device) -> ImageFeatures:
    """The features of a DINO (v1 to v3) or CLIP model in a local diffusers-style folder.

    CLIP: the last hidden state's first token, without projection; DINO: the pooled output, else the
    mean over tokens (as the paper's own measurement, arXiv:2602.03139, section 5.1).

    Raises:
        SettingsError: the folder holds no such model, or cannot be read.
    """
    from transformers import AutoConfig, AutoModel

    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(folder, f"it has no readable config.json ({_first_line(error)})") from error
    if not kind.startswith(("clip", "dino")):
        raise _no_model(folder, f"its config.json says {kind!r}")
    try:
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_model(folder, f"its weights cannot be read ({_first_line(error)})") from error
    model = model.eval().to(device)
    prepare = _Preparation(folder, device)
    vision = getattr(model, "vision_model", model)
    scores = _ClipScore(folder, model, prepare) if hasattr(model, "text_model") else None

    @torch.no_grad()
    def of(images: Images) -> Tensor:
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        found = [_pooled(kind, vision(pixel_values=prepare(batch))) for batch in batches]
        return functional.normalize(torch.cat(found).float(), dim=-1).cpu()

    return ImageFeatures(f"{kind} in {folder.name}", of, scores)


def _no_model(folder: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{folder} is no folder of image features: {why}. Expected a DINO, DINOv2, DINOv3 or "
        "CLIP model as a folder with config.json and model.safetensors."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _pooled(kind: str, output: Any) -> Tensor:
    if kind.startswith("clip"):
        return output.last_hidden_state[:, 0]
    pooled = getattr(output, "pooler_output", None)
    return pooled if pooled is not None else output.last_hidden_state.mean(dim=1)


class _Preparation:
    """Images as a vision model expects them: the shorter side resized, the middle cut out."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        path = folder / "preprocessor_config.json"
        self.device = device
        try:
            facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if not isinstance(facts, dict):
                raise ValueError("no JSON object")
            crop = facts.get("crop_size") or facts.get("size") or 224
            sides = crop if isinstance(crop, dict) else {"height": crop}
            self.side = int(sides.get("height") or sides.get("shortest_edge") or 224)
            self.mean, self.std = (
                torch.tensor([float(v) for v in facts.get(name) or IMAGENET[name]]).view(3, 1, 1)
                for name in ("image_mean", "image_std")
            )
        except (OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            # RuntimeError: other than three numbers, and JSON that is nested too deeply
            raise _no_model(folder, f"its {path.name} is damaged ({error})") from error

    def __call__(self, images: Images) -> Tensor:
        return torch.stack([self._one(image) for image in images]).to(self.device)

    def _one(self, pixels: np.ndarray) -> Tensor:
        image = Image.fromarray(pixels)
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (values - self.mean) / self.std


class _ClipScore:
    """Mean cosine between a prompt and images in a CLIP's shared space."""

    def __init__(self, folder: Path, model: Any, prepare: _Preparation) -> None:
        from transformers import AutoTokenizer

        self.model, self.prepare = model, prepare
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            why = f"its tokenizer cannot be read ({_first_line(error)})"
            raise _no_model(folder, why) from error

    @torch.no_grad()
    def __call__(self, prompt: str, images: Images) -> float:
        tokens = self.tokenizer([prompt], truncation=True, max_length=77, return_tensors="pt")
        tokens = tokens.to(self.prepare.device)
        text = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        seen = [
            self.model.vision_model(pixel_values=self.prepare(b)).pooler_output for b in batches
        ]
        shown = self.model.visual_projection(torch.cat(seen))
        return float(functional.cosine_similarity(shown, text).mean())
