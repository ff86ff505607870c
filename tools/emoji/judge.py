"""Stage `judge`: fits the network that says what an image shows, on real pictures alone.

Two thirds of a batch are real pictures in random placements, half of them through the decoder; one
third is spoilt (`spoilt.KINDS`). The threshold is the highest of a few that leaves the real
pictures their share; it is settled here, before any teacher is drawn from.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from dpdmd_studio.trainer.toys.emoji import captions
from shapes_teacher_common import LOG, Training, device, part
from torch import Tensor
from torch.nn import functional

from .drawing import anywhere
from .spoilt import KINDS, Spoiler

BATCH, CYCLES, PEAK, DECAY = 96, (3400,), 2e-3, 0.998
REAL = 64
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
CHECKED, CHECKED_EACH = 2784, 400
"""Real pictures and spoilt ones of a kind that the report counts: seeds no training update has."""


def network():
    """The judge's network, not fitted yet, for the world as it is written."""
    from dpdmd_studio.trainer.toys.emoji.judging import JudgeNetwork

    here = captions.world()
    return JudgeNetwork(len(here.names), len(here.styles))


def train(folder: Path, spoiler: Spoiler, seed: int = 0) -> Training:
    """Fit the judge, or go on with the fitting found in the folder."""
    torch.manual_seed(seed)
    place = device()
    judge = network().to(place)
    training = Training(judge, folder / "judge", CYCLES, PEAK, DECAY)

    def loss_of(update: int) -> Tensor:
        source = random.Random(f"{seed}-judge-{update}")
        images, names, styles = labelled(spoiler, REAL, source)
        with torch.no_grad(), torch.autocast(place.type, torch.bfloat16):
            images[::2] = spoiler.decode(spoiler.encode(images[::2])).float()
        kinds = [source.choice(KINDS) for _ in range(6)]
        bad = [spoiler.images(kind, (BATCH - REAL) // 6 + 1, source).float() for kind in kinds]
        whole = recoloured(torch.cat([images, *bad]), source).to(place)
        none = torch.full((len(whole) - REAL,), judge.name.out_features - 1)
        with torch.autocast(place.type, torch.bfloat16):
            found_names, found_styles = judge(whole)
        wanted = torch.cat([names, none]).to(place)
        return functional.cross_entropy(
            found_names.float(), wanted, label_smoothing=0.02
        ) + 0.5 * functional.cross_entropy(found_styles.float()[:REAL], styles.to(place))

    training.run(loss_of)
    return training


def labelled(spoiler: Spoiler, count: int, source: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Real pictures (N, 3, R, R), of unseen pairs too, with the numbers of names and styles."""
    here = captions.world()
    scenes = []
    for _ in range(count):
        free = anywhere(captions.random_scene(source), source)
        name, style = source.choice(here.names), source.choice(here.styles)
        scenes.append(replace(free, name=name, style=style))
    images = spoiler.drawer.draw(scenes, source, here.backgrounds)
    names = torch.tensor([here.names.index(s.name) for s in scenes])
    return images, names, torch.tensor([here.styles.index(s.style) for s in scenes])


def recoloured(images: Tensor, source: random.Random) -> Tensor:
    """Each image in another brightness, contrast and saturation."""

    def factors(low: float, high: float) -> Tensor:
        found = [source.uniform(low, high) for _ in range(len(images))]
        return torch.tensor(found).to(images)[:, None, None, None]

    grey = images.mean(dim=1, keepdim=True)
    images = grey + factors(0.7, 1.35) * (images - grey)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = middle + factors(0.75, 1.25) * (images - middle)
    return (images * factors(0.75, 1.2) + factors(-0.06, 0.06)).clamp(0, 1)


@torch.inference_mode()
def check(folder: Path, spoiler: Spoiler) -> dict:
    """The judge's own figures on fresh placements, at every threshold."""
    from safetensors.torch import load_file

    judge = network()
    judge.load_state_dict(part(load_file(folder / "judge" / "state.safetensors"), "average."))
    judge.eval()
    source = random.Random("judge-check")
    images, names, styles = labelled(spoiler, CHECKED, source)

    def read(seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = [judge(some) for some in seen.split(256)]
        chances = torch.cat([f[0] for f in found]).softmax(-1).max(-1)
        return chances.indices, chances.values, torch.cat([f[1] for f in found]).argmax(-1)

    again = torch.cat([spoiler.decode(spoiler.encode(some)) for some in images.split(128)])
    groups = {"straight": images, "decoded": again.clamp(0, 1), "darker": images * 0.8}
    groups["lighter"] = (images * 1.15 + 0.03).clamp(0, 1)
    facts: dict = {"thresholds": {str(t): {} for t in THRESHOLDS}, "styles": {}}
    for title, seen in groups.items():
        found, chance, style = read(seen)
        right = found == names
        facts["styles"][title] = _share(style == styles)
        for t in THRESHOLDS:
            facts["thresholds"][str(t)][title] = _share(right & (chance >= t))
        if title == "straight":
            facts["confused"] = _confusions(names[~right], found[~right])
    for kind in KINDS:
        found, chance, _ = read(spoiler.images(kind, CHECKED_EACH, source).float())
        none = found == judge.name.out_features - 1
        for t in THRESHOLDS:
            facts["thresholds"][str(t)][f"{kind} refused"] = _share(none | (chance < t))
    LOG.info("%s", json.dumps(facts, indent=1))
    return facts


def _share(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)


def _confusions(wanted: Tensor, found: Tensor) -> list[str]:
    from collections import Counter

    names = (*captions.world().names, "none")
    pairs = Counter((names[a], names[b]) for a, b in zip(wanted, found, strict=True))
    return [f"{a} as {b}: {n}" for (a, b), n in pairs.most_common(12)]


def write(folder: Path, target: Path, threshold: float) -> None:
    """The averaged network in half precision, with its names and its threshold."""
    from safetensors.torch import load_file, save_file

    here = captions.world()
    tensors = part(load_file(folder / "judge" / "state.safetensors"), "average.")
    facts = {"names": here.names, "styles": here.styles, "threshold": threshold}
    save_file(
        {k: v.half().contiguous() for k, v in tensors.items()},
        target,
        {"format": "pt", "dpdmd.judge": json.dumps(facts)},
    )
