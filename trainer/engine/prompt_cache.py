"""Prompts encoded once: on disk under a hash of encoder, prompt and settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.errors import OutputError
from .checkpoint import LoadedCheckpoint
from .conditioning import Conditioning
from .text_encoders import TOKEN_IDS, Encoded, EncoderPlan, combine, encoder_dtype, plan
from .weights import Component

logger = logging.getLogger("dpdmd_studio.loading")
Report = Callable[[str], None]
Progress = Callable[[int, int], None]

CACHE_VERSION = 1
SAMPLED_BYTES = 4096


def encode_prompts(
    checkpoint: LoadedCheckpoint,
    prompts: Sequence[str],
    *,
    cache_folder: Path,
    clip_skip: int = 1,
    device: torch.device | str = "cpu",
    report: Report = logger.info,
    progress: Progress | None = None,
) -> list[Conditioning]:
    """Conditioning of each prompt: batch size 1, on the CPU, in the denoiser's dtype.

    Args:
        checkpoint: its encoders are loaded one after the other, if anything is missing at all.
        prompts: texts without `<lora:...>` tags.
        cache_folder: made if need be.
        clip_skip: 1 is the last layer; SD 1.x only.
        device: where the encoders run.
        report: is told what is going to happen before it does.
        progress: is called with (prompts done by all encoders so far, how many there are).
    """
    plans = {kind: plan(kind, checkpoint, clip_skip) for kind in checkpoint.encoders}
    settings = _settings(checkpoint, clip_skip)
    files = {text: cache_folder / f"{_key(settings, text)}.safetensors" for text in prompts}
    found = {text: _read(file, checkpoint) for text, file in files.items()}
    missing = [text for text, conditioning in found.items() if conditioning is None]
    if missing:
        size = estimate_cache_bytes(checkpoint, missing, clip_skip=clip_skip)
        report(
            f"Encoding {len(missing)} of {len(found)} prompts; this adds {size / 1e6:.1f} MB to "
            f"the prompt cache in {cache_folder}."
        )
        for text, conditioning in _encode(checkpoint, plans, missing, device, progress):
            _write(files[text], conditioning)
            found[text] = conditioning
    return [item for text in prompts if (item := found[text]) is not None]


def estimate_cache_bytes(
    checkpoint: LoadedCheckpoint, prompts: Sequence[str], *, clip_skip: int = 1
) -> int:
    """Bytes that these prompts take in the cache and in memory."""
    plans = {kind: plan(kind, checkpoint, clip_skip) for kind in checkpoint.encoders}
    config, total = checkpoint.config, 0
    width = int(str(config.get("joint_attention_dim") or config["cross_attention_dim"]))
    pooled = int(str(config.get("pooled_projection_dim") or 0))
    clip = [kind for kind in plans if kind != "t5xxl"]
    for text in prompts:
        lengths = [plans[kind].num_tokens(text) for kind in clip[:1]]
        lengths += [plans[kind].num_tokens(text) for kind in plans if kind == "t5xxl"]
        total += sum(lengths) * width + pooled
    return total * torch.empty((), dtype=checkpoint.dtype).element_size()


def _encode(
    checkpoint: LoadedCheckpoint,
    plans: dict[str, EncoderPlan],
    prompts: list[str],
    device: torch.device | str,
    progress: Progress | None,
) -> Iterator[tuple[str, Conditioning]]:
    """(prompt, conditioning) of each prompt, one encoder in memory at a time."""
    parts: dict[str, dict[str, Encoded]] = {text: {} for text in prompts}
    for number, (kind, component) in enumerate(checkpoint.encoders.items()):
        model = component.load(encoder_dtype(component.config), device)
        for done, text in enumerate(prompts, start=1):
            with torch.no_grad():
                encoded = plans[kind].encode(model, text)
            parts[text][kind] = _kept(encoded, checkpoint.dtype)
            if progress is not None:
                progress(number * len(prompts) + done, len(plans) * len(prompts))
        del model
    for text in prompts:
        yield text, combine(checkpoint, parts.pop(text))


def _kept(encoded: Encoded, dtype: torch.dtype) -> Encoded:
    pooled = None if encoded.pooled is None else encoded.pooled.to("cpu", dtype)
    return Encoded(encoded.tokens.to("cpu", dtype), pooled)


def _settings(checkpoint: LoadedCheckpoint, clip_skip: int) -> str:
    """Everything but the prompt that decides the outcome, as text."""
    config = checkpoint.config
    return json.dumps({
        "version": CACHE_VERSION,
        "family": checkpoint.family.name,
        "encoders": {k: encoder_identity(c) for k, c in checkpoint.encoders.items()},
        "clip_skip": clip_skip if checkpoint.family.name == "sd1" else 2,
        "dtype": str(checkpoint.dtype),
        "widths": [config.get(name) for name in
                   ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim")],
    }, sort_keys=True)  # fmt: skip


def encoder_identity(component: Component) -> str:
    """Hash of an encoder's tensors: names, dtypes, shapes, and the ends of each one's bytes.

    Independent of the file's name and of what else is in it; sampling keeps a 9 GB encoder cheap.
    """
    digest = hashlib.sha256()
    weights = component.weights
    names = [(name, weights.infos[name], weights.prefix) for name in weights.infos]
    extra = weights.files[0].tensors.get(TOKEN_IDS)
    if extra is not None:
        names.append((TOKEN_IDS, extra, ""))
    for name, info, prefix in sorted(names, key=lambda item: item[0]):
        digest.update(f"{name}|{info.dtype}|{info.shape}|".encode())
        digest.update(weights.sample_bytes(prefix + name, SAMPLED_BYTES))
    return digest.hexdigest()


def _key(settings: str, prompt: str) -> str:
    return hashlib.sha256(f"{settings}\0{prompt}".encode()).hexdigest()


def _read(file: Path, checkpoint: LoadedCheckpoint) -> Conditioning | None:
    """The cached conditioning, or None if it is absent or damaged."""
    try:
        tensors = load_file(file)
        context = tensors["context"]
    except (OSError, SafetensorError, KeyError):
        return None
    return Conditioning(context, tensors.get("pooled"), repeatable=checkpoint.family.name != "sd3")


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
