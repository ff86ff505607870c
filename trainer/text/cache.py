"""Prompts encoded once: on disk under a hash of encoder, prompt and settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from ...core.errors import NonFiniteError, OutputError, RunError
from ...core.families.base import TextFacts
from ..device import first_line, free_memory, is_out_of_memory, release_memory
from ..loading.checkpoint import Checkpoint
from ..loading.weights import Component, is_finite
from ..model.conditioning import Conditioning, Encoded
from ..model.family import width_of
from .block_by_block import block_by_block
from .encoders import EncoderPlan, combine, encoder_dtype, plan, read_layer
from .widened import in_float32

log = logging.getLogger("dpdmd_studio.text")

CACHE_VERSION = 2
SAMPLED_BYTES = 4096
SHOWN_LETTERS = 60
# Encoded prompts up to this size stay in memory; thousands of SD3's would take many gigabytes.
KEPT_BYTES = 2**30
IN_BLOCKS = (
    "the device has too little memory free to hold it, so it is brought there a block at a time, "
    "which is slower. Prompts are encoded once and kept."
)
ON_CPU = (
    "the device has too little memory free for it, so it runs on the CPU, which is slow. Prompts "
    "are encoded once and kept."
)
WORKING_SHARE = 0.1
"""What an encoder takes beside its weights, as a share of them: assumed, not measured."""


class EncodedPrompts(Mapping[str, Conditioning]):
    """Encoded prompts in the cache, by their text; each has batch size 1 and lies on the CPU.

    The first ones to fit into `KEPT_BYTES` stay in memory, the others are read when asked for.
    """

    def __init__(self, files: Mapping[str, Path], checkpoint: Checkpoint) -> None:
        self._files, self._facts = dict(files), checkpoint.family.text
        self._kept: dict[str, Conditioning] = {}
        self._room = KEPT_BYTES

    def __getitem__(self, text: str) -> Conditioning:
        """Raises RunError if the file was removed or damaged since it was written."""
        if text in self._kept:
            return self._kept[text]
        found = self.read(text)
        if found is None:
            raise RunError(
                f"The encoded prompt {self._files[text]} was removed or damaged while it was in "
                "use. Resume the run: missing prompts are encoded anew."
            )
        return found

    def __contains__(self, text: object) -> bool:
        return text in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, text: str) -> Conditioning | None:
        """What the cache holds for it, or None if that is nothing or damaged."""
        found = _read(self._files[text], self._facts)
        if found is not None and found.num_bytes <= self._room:
            self._room -= found.num_bytes
            self._kept[text] = found
        return found

    def write(self, text: str, conditioning: Conditioning) -> None:
        """Add it to the cache."""
        _write(self._files[text], conditioning)


def encode_prompts(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    *,
    cache_folder: Path,
    clip_skip: int = 1,
    ahead: Sequence[str] = (),
) -> EncodedPrompts:
    """Conditioning of each prompt: batch size 1, on the CPU, in the denoiser's dtype.

    Args:
        checkpoint: its encoders are loaded one after the other, if anything is missing at all:
            onto its device; where that has too little memory, a block at a time, or on the CPU.
            Its denoiser should come later.
        prompts: texts without `<lora:...>` tags.
        cache_folder: made if need be.
        clip_skip: 1 is the last layer; SD 1.x only.
        ahead: texts that are asked for later, put into the cache while the encoders are at hand;
            one that cannot be encoded is left out of it.

    Raises:
        NonFiniteError: one of `prompts` is encoded to NaN or infinity.
        RunError: the computer has too little memory for an encoder.
    """
    plans = {kind: plan(kind, checkpoint, clip_skip) for kind in checkpoint.encoders}
    for note in chain.from_iterable(found.notes(prompts) for found in plans.values()):
        log.info("%s", note)
    settings = _settings(checkpoint, clip_skip)
    texts = list(dict.fromkeys([*prompts, *ahead]))
    files = {text: cache_folder / f"{_key(settings, text)}.safetensors" for text in texts}
    encoded = EncodedPrompts({text: files[text] for text in prompts}, checkpoint)
    later = EncodedPrompts({text: files[text] for text in texts if text not in encoded}, checkpoint)
    missing = [text for text in encoded if encoded.read(text) is None]
    missing += [text for text in later if later.read(text) is None]
    if not missing:
        return encoded
    size = estimate_cache_bytes(checkpoint, missing, clip_skip=clip_skip)
    log.info(
        "Encoding %d of %d prompts; this adds %.1f MB to the prompt cache in %s.",
        len(missing),
        len(texts),
        size / 1e6,
        cache_folder,
    )
    for text, conditioning in _encode(checkpoint, plans, missing):
        if _is_finite(conditioning):
            (encoded if text in encoded else later).write(text, conditioning)
        elif text in encoded:
            raise NonFiniteError(_beyond(text, checkpoint.dtype))
    release_memory(checkpoint.device)
    return encoded


def estimate_cache_bytes(
    checkpoint: Checkpoint, prompts: Sequence[str], *, clip_skip: int = 1
) -> int:
    """Bytes that these prompts take in the cache and in memory."""
    plans = {kind: plan(kind, checkpoint, clip_skip) for kind in checkpoint.encoders}
    config, total = checkpoint.config, 0
    facts = checkpoint.family.text
    width, pooled = width_of(config, facts.context_width), 0
    if facts.pooled_width:
        pooled = width_of(config, facts.pooled_width)
    # the first of each group: the others' tokens stand beside its own; the last of a chain
    present = [[kind for kind in group.kinds if kind in plans] for group in facts.groups]
    beside = [
        kinds[:-1] if group.chained else kinds[1:]
        for group, kinds in zip(facts.groups, present, strict=True)
    ]
    counted = [kind for kind in plans if kind not in chain(*beside)]
    for text in prompts:
        lengths = [plans[kind].num_tokens(text) for kind in counted]
        total += sum(lengths) * width + pooled
    return total * torch.empty((), dtype=checkpoint.dtype).element_size()


def _encode(
    checkpoint: Checkpoint, plans: dict[str, EncoderPlan], prompts: list[str]
) -> Iterator[tuple[str, Conditioning]]:
    """(prompt, conditioning) of each prompt, one encoder in memory at a time.

    Each is handed out once the last encoder has seen it: T5's outputs never pile up in memory.
    """
    parts: dict[str, dict[str, Encoded]] = {text: {} for text in prompts}
    for number, kind in enumerate(checkpoint.encoders):
        for text, encoded in _through(checkpoint, kind, plans[kind], parts):
            parts[text][kind] = _kept(encoded, checkpoint.dtype)
            if number + 1 == len(plans):
                yield text, combine(checkpoint, parts.pop(text))


def _through(
    checkpoint: Checkpoint, kind: str, how: EncoderPlan, parts: Mapping[str, Mapping[str, Encoded]]
) -> Iterator[tuple[str, Encoded]]:
    """(prompt, what one encoder says of it) of each prompt, in the first way that has memory.

    Args:
        parts: of each prompt, what the encoders before this one said of it.
    """
    prompts = list(parts)
    component, device = checkpoint.encoders[kind], checkpoint.device
    ways = _ways(component, device)
    model, done = None, 0
    while done < len(prompts):
        try:
            if model is None:
                if ways[0].note:
                    log.info("%s: %s", component.what, ways[0].note)
                model = ways[0].load()
            with torch.no_grad():
                found = how.encode(model, prompts[done], parts[prompts[done]])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(ways) == 1:
                size = component.num_bytes(encoder_dtype(component))
                raise RunError(
                    f"{component.what}: the computer has too little memory free to encode prompts "
                    f"with it ({first_line(error)}); it takes {size / 2**30:.1f} GiB. Close other "
                    "programs or enlarge the swap space, then start again: prompts encoded so far "
                    "are kept."
                ) from error
            model = None
        else:
            yield prompts[done], found
            done += 1
            continue
        del ways[0]
        release_memory(device)  # the error, which held on to the model, is gone by now


@dataclass(frozen=True)
class _Way:
    """How an encoder is run, with what to say of that."""

    load: Callable[[], nn.Module]
    note: str = ""


def _ways(component: Component, device: torch.device) -> list[_Way]:
    """From the fastest way of running an encoder to the one that takes least of the device."""
    dtype = encoder_dtype(component)

    def loaded(place: str | torch.device) -> nn.Module:
        model = component.load(dtype, place)
        return model if dtype == torch.float32 else in_float32(model)

    whole = _Way(lambda: loaded(device))
    if device.type == "cpu":
        return [whole]
    less = [
        _Way(lambda: block_by_block(loaded("cpu"), device), IN_BLOCKS),
        _Way(lambda: loaded("cpu"), ON_CPU),
    ]
    return [whole, *less] if _fits(component, dtype, device) else less


def _fits(component: Component, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has room for an encoder, as far as it tells."""
    free = free_memory(device)
    return free is None or component.num_bytes(dtype) * (1 + WORKING_SHARE) <= free


def _is_finite(found: Conditioning) -> bool:
    return is_finite(found.context) and (found.pooled is None or is_finite(found.pooled))


def _beyond(text: str, dtype: torch.dtype) -> str:
    shown = text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
    half = ", or choose --dtype bfloat16 or float32" if dtype == torch.float16 else ""
    return (
        f"The prompt {shown!r} is encoded to NaN or infinity. Lower the weights in its brackets "
        f"(0 to 2 is usual){half}; if it has none, the text encoder is damaged."
    )


def _kept(encoded: Encoded, dtype: torch.dtype) -> Encoded:
    pooled = None if encoded.pooled is None else encoded.pooled.to("cpu", dtype)
    return Encoded(encoded.tokens.to("cpu", dtype), pooled)


def _settings(checkpoint: Checkpoint, clip_skip: int) -> str:
    """Everything but the prompt that decides the outcome, as text."""
    config = checkpoint.config
    return json.dumps({
        "version": CACHE_VERSION,
        "family": checkpoint.family.name,
        "encoders": {k: encoder_identity(c) for k, c in checkpoint.encoders.items()},
        "clip_skip": read_layer(checkpoint, clip_skip),
        "dtype": str(checkpoint.dtype),
        "widths": [config.get(name) for name in checkpoint.family.text.width_names],
    }, sort_keys=True)  # fmt: skip


def encoder_identity(component: Component) -> str:
    """Hash of an encoder's tensors: names, dtypes, shapes, and the ends of each one's bytes.

    Independent of the file's name and of what else is in it; sampling keeps a 9 GB encoder cheap.
    Merged LoRAs count with all their bytes, strength and order.
    """
    digest = hashlib.sha256()
    weights = component.weights
    names = [(name, weights.infos[name], weights.prefix) for name in weights.infos]
    stored = weights.files[0].tensors
    names += [(name, stored[name], "") for name in component.extra if name in stored]
    for name, info, prefix in sorted(names, key=lambda item: item[0]):
        digest.update(f"{name}|{info.dtype}|{info.shape}|".encode())
        digest.update(weights.sample_bytes(prefix + name, SAMPLED_BYTES))
    if component.updates.origin:
        digest.update(f"|merged|{json.dumps(component.updates.origin)}".encode())
    return digest.hexdigest()


def _key(settings: str, prompt: str) -> str:
    return hashlib.sha256(f"{settings}\0{prompt}".encode()).hexdigest()


def _read(file: Path, facts: TextFacts) -> Conditioning | None:
    """The cached conditioning, or None if it is absent, damaged, or no numbers.

    Read, not mapped into memory: a mapped file that somebody truncates ends the process.
    """
    try:
        tensors = load(file.read_bytes())
        context = tensors["context"]
    except (OSError, SafetensorError, KeyError):
        return None
    pooled = tensors.get("pooled")
    found = Conditioning(context, pooled, repeatable=facts.repeatable, masked=facts.masked)
    return found if _is_finite(found) else None


def _write(file: Path, conditioning: Conditioning) -> None:
    """Write to a temporary file and put it in place, so that no reader sees half a file."""
    tensors: dict[str, Tensor] = {"context": conditioning.context.contiguous()}
    if conditioning.pooled is not None:
        tensors["pooled"] = conditioning.pooled.contiguous()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, name)
            os.replace(name, file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"Cannot write the prompt cache in {file.parent}: {error}. Free some space there, or "
            "set DPDMD_HOME to another folder."
        ) from error
