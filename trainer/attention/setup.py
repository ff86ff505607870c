"""Which attention kernels a diffusers network trains on.

"auto" times what works here on the network's own shapes, once for each device, number format and
shape, and takes the fastest of each; the timings are remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import nn

from ...app.runs.directory import RunDirectory
from ...core.attention import SDPA as PYTORCH
from ...core.attention import choose
from ...core.errors import SettingsError
from ..model.network import network_dtype
from .memory import Measurements, Report, Times, machine_key, note_choice, noted_choice
from .shapes import AttentionShape, attention_shapes
from .timing import SDPA, XFORMERS, Candidate, candidates, measure, unusable

CHOICES = ("auto", SDPA, XFORMERS)
# A kernel other than PyTorch's own choice must win by more than timings vary.
MARGIN = 0.03
JOINT = (JointAttnProcessor2_0, XFormersJointAttnProcessor)
PLAIN = (AttnProcessor2_0, XFormersAttnProcessor, *JOINT)


@dataclass(frozen=True)
class Workload:
    """What the network is called with: (C, h, w) of a latent, pictures a pass, tokens of text."""

    latent: tuple[int, int, int]
    pictures: int
    text_tokens: int


def use_attention(
    network: nn.Module,
    choice: str = "auto",
    workload: Workload | None = None,
    run: RunDirectory | None = None,
    report: Report = lambda text: None,
) -> str:
    """Set the kernels of every attention layer; returns which are in force and why.

    Args:
        choice: "xformers" is taken if it passes its trial, gradients included, at every head width
            of the network; else PyTorch's own stay, and the text says what was wrong.
        workload: what "auto" measures for; without one PyTorch's own kernels stay.
        run: where "auto" notes its choice, and finds it at a resume.
        report: is told what is wrong with remembered timings.

    Raises:
        SettingsError: there is no such choice.
    """
    if choice not in CHOICES:
        raise SettingsError(f"attention is {choice!r}; choose {', '.join(CHOICES)}.")
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Attention) and isinstance(module.processor, PLAIN)
    }
    offered = candidates(next(network.parameters()).device)
    _set_processors(layers, offered, {})
    if choice == SDPA or not layers:
        return f"{PYTORCH} (as chosen)"
    if choice == XFORMERS:
        return _force_xformers(network, layers, offered)
    if workload is None:
        return f"{PYTORCH} (nothing was measured)"
    return _choose(network, layers, offered, workload, run, report)


def _force_xformers(
    network: nn.Module, layers: Mapping[str, Attention], offered: Mapping[str, Candidate]
) -> str:
    device, dtype = next(network.parameters()).device, network_dtype(network)
    widths = sorted({layer.inner_dim // layer.heads for layer in layers.values()})
    for width in widths:
        reason = unusable(XFORMERS, device, dtype, width)
        if reason:
            return f"{PYTORCH} ({reason})"
    _set_processors(layers, offered, dict.fromkeys(layers, XFORMERS))
    return str(choose(device, dtype, widths[0]))


def _choose(
    network: nn.Module,
    layers: Mapping[str, Attention],
    offered: Mapping[str, Candidate],
    workload: Workload,
    run: RunDirectory | None,
    report: Report,
) -> str:
    """The noted choice of a run, else the fastest for each layer's shape."""
    device, dtype = next(network.parameters()).device, network_dtype(network)
    key = machine_key(device, dtype)
    noted = noted_choice(run, key, report) if run else {}
    if noted.keys() == layers.keys() and set(noted.values()) <= offered.keys():
        _set_processors(layers, offered, noted)
        return f"{_in_words(noted)} (as this run began)"
    found = attention_shapes(network, workload.latent, workload.pictures, workload.text_tokens)
    shapes = {name: found[name] for name in layers}
    reasons = {
        shape: {name: unusable(name, device, dtype, shape.width) for name in offered}
        for shape in set(shapes.values())
    }
    usable = {
        shape: {name: offered[name] for name, reason in why.items() if not reason}
        for shape, why in reasons.items()
    }
    without = next((r for why in reasons.values() if (r := why[XFORMERS])), "")
    timed = {shape: offer for shape, offer in usable.items() if len(offer) > 1}
    times, remembered = _times(timed, device, dtype, key, report)
    picked = {shape: fastest(seconds) for shape, seconds in times.items()}
    chosen = {name: picked.get(shape, SDPA) for name, shape in shapes.items()}
    _set_processors(layers, offered, chosen)
    if run:
        note_choice(run, key, chosen)
    if not timed:
        return f"{PYTORCH} ({without})"
    words = _ratio(Counter(shapes.values()), times, picked, remembered)
    return f"{_in_words(chosen)} ({'; '.join(filter(None, (words, without)))})"


def _times(
    usable: Mapping[AttentionShape, Mapping[str, Candidate]],
    device: torch.device,
    dtype: torch.dtype,
    key: str,
    report: Report,
) -> tuple[dict[AttentionShape, Times], bool]:
    """Seconds by shape and candidate, and whether all were remembered."""
    memory, found, remembered = Measurements(key, report), {}, True
    for shape, offer in sorted(usable.items()):
        known = memory.get(str(shape))
        if known is None or SDPA not in known or not known.keys() <= offer.keys():
            known, remembered = measure(shape, device, dtype, offer), False
            memory.put(str(shape), known)
        found[shape] = known
    memory.save()
    return found, remembered


def fastest(seconds: Times) -> str:
    """The fastest candidate, PyTorch's own unless another is clearly faster."""
    best = min(seconds, key=lambda name: (seconds[name], name))
    return best if seconds[best] < (1 - MARGIN) * seconds[SDPA] else SDPA


def _ratio(
    counts: Mapping[AttentionShape, int],
    times: Mapping[AttentionShape, Times],
    picked: Mapping[AttentionShape, str],
    remembered: bool,
) -> str:
    """The chosen kernels' time against PyTorch's own choice, over all layers."""
    own = sum(counts[shape] * seconds[SDPA] for shape, seconds in times.items())
    chosen = sum(counts[shape] * seconds[picked[shape]] for shape, seconds in times.items())
    how = "remembered" if remembered else "measured"
    if set(picked.values()) == {SDPA}:
        return f"nothing was clearly faster, {how}"
    return f"{chosen / own if own else 1.0:.2f} of SDPA's time, {how}"


def _in_words(chosen: Mapping[str, str]) -> str:
    """ "xformers", or how many layers have which."""
    counts = Counter(PYTORCH if name == SDPA else name for name in chosen.values())
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} in {n} layers" for name, n in counts.most_common())


def _set_processors(
    layers: Mapping[str, Attention], offered: Mapping[str, Candidate], chosen: Mapping[str, str]
) -> None:
    """Give each layer its candidate's processor of its kind; PyTorch's own where none is named."""
    for name, layer in layers.items():
        candidate = offered[chosen.get(name, SDPA)]
        joint = isinstance(layer.processor, JOINT)
        layer.set_processor(candidate.joint() if joint else candidate.unet())
