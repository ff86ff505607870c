"""Stages `export` (its choice of guidance) and `verify`: images made and measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from shapes_teacher_common import LOG, device
from torch import Tensor

STEPS = 30
SCALES = (1.5, 2.0, 2.5, 3.0, 4.0)
ADHERENCE_BAR, ENTROPY_BAR, ROUND_TRIP_BAR = 0.95, 0.85, 0.99
ADHERENCE_GOAL = 0.975
"""The lowest guidance that reaches this on training captions is taken."""
BATCH = 200
CAPTIONS_TO_CHOOSE, CAPTIONS_TO_VERIFY, REPEATED, SEEDS_EACH = 400, 1500, 12, 120


class Models(Protocol):
    """A teacher read back from its file, in evaluation mode."""

    latent_shape: tuple[int, int, int]

    def latents(self, texts: list[str], noise: Tensor, steps: int, scale: float) -> Tensor:
        """Guided samples that start from the noise (N, C, h, w)."""
        ...

    def images(self, latents: Tensor) -> np.ndarray:
        """uint8 images of latents (N, C, h, w), as a host decodes them."""
        ...

    def redrawn(self, scenes, plans, drawn: np.ndarray) -> np.ndarray:
        """Drawn images made again from the latents that stand for them."""
        ...


def images_of(models: Models, texts: list[str], seed: int, scale: float, steps: int = STEPS):
    """Images for the captions; image i starts from the noise of seed + i."""
    found = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        seeds = range(seed + start, seed + start + len(some))
        noise = torch.stack([start_noise(s, models.latent_shape) for s in seeds])
        found.append(models.images(models.latents(some, noise.to(device()), steps, scale)))
    return np.concatenate(found)


def start_noise(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """The noise that every host draws for this seed."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def counted(texts: list[str], images: np.ndarray) -> dict:
    """Share of valid and of matching images, and the entropy of what captions leave unsaid."""
    import shapes_scenes
    from dpdmd_studio.trainer.toys import measures as shapes_measure

    found = shapes_scenes.measure_all(images)
    pairs = list(zip(texts, found, strict=True))
    return {
        "images": len(pairs),
        "valid": round(sum(m.valid for m in found) / len(pairs), 4),
        "match": round(sum(shapes_measure.adherence(t, m) for t, m in pairs) / len(pairs), 4),
        "unsaid_entropy": _rounded(shapes_measure.unsaid_entropy(pairs)),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in values.items()}


def choose_guidance(models: Models) -> tuple[float, dict]:
    """Lowest scale that serves on training captions, and what each scale gave there."""
    from dpdmd_studio.trainer.toys import shapes

    texts = shapes.caption_sample(False, CAPTIONS_TO_CHOOSE, seed=1)
    table = {}
    for scale in SCALES:
        table[str(scale)] = counted(texts, images_of(models, texts, 10_000, scale))
        LOG.info("guidance %.1f: %s", scale, table[str(scale)])
        if table[str(scale)]["match"] >= ADHERENCE_GOAL:
            return scale, table
    return max(SCALES, key=lambda s: table[str(s)]["match"]), table


def drawn_like(texts: list[str], seed: int) -> np.ndarray:
    """Drawn images that show what each caption says, the rest free."""
    import shapes_scenes
    from dpdmd_studio.trainer.toys import shapes

    generator = np.random.default_rng(seed)
    scenes = []
    for text, free in zip(texts, shapes_scenes.random_scenes(len(texts), generator), strict=True):
        scenes.append(shapes.Scene(**{**vars(free), **shapes.parse_caption(text)}))
    return shapes_scenes.draw(scenes, generator)


def round_trip(models: Models, count: int = 1000) -> dict:
    """How many drawn images measure the same after being made again from their latents."""
    import shapes_scenes

    generator = np.random.default_rng(77)
    scenes = shapes_scenes.random_scenes(count, generator)
    plans = shapes_scenes.plan(scenes, generator)
    drawn = shapes_scenes.render(plans)
    again = models.redrawn(scenes, plans, drawn)
    before, after = shapes_scenes.measure_all(drawn), shapes_scenes.measure_all(again)
    same = sum(a == b and a.valid for a, b in zip(before, after, strict=True))
    error = np.abs(again.astype(float) - drawn).mean()
    return {"images": count, "same": same / count, "mean_absolute_error": round(error, 3)}


def verify(models: Models, path: Path, folder: Path) -> dict:
    """All held-out numbers of the written file; raises when a bar is missed."""
    from dpdmd_studio.trainer.toys import shapes
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        scale = json.loads(file.metadata()["dpdmd.shapes"])["guidance_scale"]
    started = time.monotonic()
    texts = shapes.caption_sample(True, CAPTIONS_TO_VERIFY, seed=2)
    images = images_of(models, texts, 100_000, scale)
    save_grid(images[:60], folder / "held_out.png")
    result = {"guidance_scale": scale, "steps": STEPS, "round_trip": round_trip(models)}
    result["held_out"] = counted(texts, images)
    result["drawn_for_the_same_captions"] = counted(texts, drawn_like(texts, 3))
    result["one_caption_many_seeds"] = repeated(models, scale)
    plain = images_of(models, texts[:500], 100_000, 1.0)
    result["held_out_without_guidance"] = counted(texts[:500], plain)
    few = images_of(models, texts[:500], 100_000, scale, steps=4)
    result["held_out_4_steps"] = counted(texts[:500], few)
    result["seconds"] = round(time.monotonic() - started)
    _hold_bars(result)
    return result


def repeated(models: Models, scale: float) -> dict:
    """Entropy of unsaid attributes within one caption, averaged over captions; also relative."""
    from dpdmd_studio.trainer.toys import shapes

    texts = shapes.caption_sample(True, REPEATED * 3, seed=4)
    texts = [t for t in texts if len(shapes.parse_caption(t)) < 5][:REPEATED]
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in shapes.ATTRIBUTES}
    for number, text in enumerate(texts):
        many = [text] * SEEDS_EACH
        made = counted(many, images_of(models, many, 200_000 + 1000 * number, scale))
        drawn = counted(many, drawn_like(many, 50 + number))
        for name in set(shapes.ATTRIBUTES) - set(shapes.parse_caption(text)):
            pair = (made["unsaid_entropy"][name], drawn["unsaid_entropy"][name])
            sums[name].append(pair)
    means = {k: np.mean(v, axis=0) for k, v in sums.items() if v}
    return {
        "captions": texts,
        "seeds_each": SEEDS_EACH,
        "relative_entropy": {k: round(float(a / b), 4) for k, (a, b) in means.items()},
    }


def _hold_bars(result: dict) -> None:
    """Adds the entropies relative to drawn images and whether every bar is met."""
    made, drawn = result["held_out"], result["drawn_for_the_same_captions"]
    relative = {
        name: round(value / drawn["unsaid_entropy"][name], 4)
        for name, value in made["unsaid_entropy"].items()
    }
    made["relative_entropy"] = relative
    result["bars_met"] = bool(
        made["match"] >= ADHERENCE_BAR
        and min(relative.values()) >= ENTROPY_BAR
        and min(result["one_caption_many_seeds"]["relative_entropy"].values()) >= ENTROPY_BAR
        and result["round_trip"]["same"] >= ROUND_TRIP_BAR
    )


def save_grid(images: np.ndarray, path: Path, columns: int = 12) -> None:
    """Images side by side in one PNG."""
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    Image.fromarray(np.concatenate([r for r in rows if r.shape == rows[0].shape])).save(path)
