"""What decides the numbers of a run, as hashes: a resume must find the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ...app.config.distill_config import DistillConfig
from ...core.files.hashes import file_sha256
from ...core.recipe.recipe import MergedLora
from ..loading.checkpoint import LoadedCheckpoint
from ..text.cache import encoder_identity

log = logging.getLogger("dpdmd_studio.training")

# Settings that change how a run is done but not what it computes.
MACHINE_SETTINGS = (
    "device",
    "offload_base",
    "attention",
    "gradient_checkpointing",
    "micro_batch_size",
    "offload_optimizer",
    "fit_memory",
    "save_every",
    "preview_every",
    "evaluate_every",
    "evaluation_prompts",
    "keep",
)

# Settings that came later, with what was done before them: runs from then go on.
EARLIER = {"zero_terminal_snr": "auto", "optimizer": "adamw", "base_weights": "keep"}


def checkpoint_identity(path: Path) -> str:
    """SHA256 of a checkpoint file; of the names and SHA256 of all weights in a folder."""
    log.info("Computing the checkpoint's SHA256 (it goes into the LoRA's metadata)")
    if path.is_file():
        return file_sha256(path)
    files = sorted(path.rglob("*.safetensors"))
    facts = [(f.relative_to(path).as_posix(), file_sha256(f)) for f in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def run_fingerprint(
    config: DistillConfig,
    prompts: list[str],
    checkpoint_sha256: str,
    checkpoint: LoadedCheckpoint,
    merged: Sequence[MergedLora] = (),
) -> str:
    """Hash of all that decides what a run computes; a resume must find the same one."""
    settings = dataclasses.asdict(config)
    for name in MACHINE_SETTINGS:
        settings.pop(name)
    for name, before in EARLIER.items():
        if settings[name] == before:
            settings.pop(name)
    encoders = {name: encoder_identity(part) for name, part in checkpoint.encoders.items()}
    facts = [settings, prompts, checkpoint_sha256, encoders, str(checkpoint.dtype)]
    if merged:  # runs without stay what they were
        facts.append([[lora.sha256, lora.strength] for lora in merged])
    content = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
