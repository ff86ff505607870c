"""Loading a local checkpoint, single file or diffusers folder, without any network access.

Everything the denoiser and the text encoders in use need is looked up in the files' headers first;
only when nothing is missing or misshaped is anything built. Text encoders and the VAE are loaded on
demand and belong to the caller, who drops them after use.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of huggingface_hub

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import nn

from ...app.config.request import ModelFiles
from ...core.diffusion.schedule import Schedule
from ...core.errors import CheckpointError, LoraError
from ...core.families import AskedSampling, Config, Detection, Family, family, set_otherwise
from ...core.lora.file import Deltas, LoraFile, lora_deltas, merge_lora, parameter_shapes
from ...core.recipe.few_step import family_schedule
from ..families import TorchFamily, half_of
from ..model.network import NetworkCall
from .lora_merge import MergingLora, plan_merge
from .parts import Parts, find_components
from .vae import LatentDecoder, find_decoder
from .weights import Component

logger = logging.getLogger("dpdmd_studio.loading")
# What a checkpoint file may hold beside the tensors in use
KNOWN_EXTRAS = re.compile(
    r"^model_ema\."
    r"|(^|\.)(position_ids|logit_scale|spiece_model|tokenizer_json)$"
    r"|^(betas|logvar|lvlb_weights|alphas_cumprod(_prev)?|posterior_\w+|log_one_minus_\w+|sqrt_\w+)$"
    r"|^denoiser\.(sigmas|log_sigmas)$|^model_sampling\.\w+$"
    r"|(^|\.)(pos_embedder\.\w+|accum_\w+|_extra_state)$"
    r"|(^|\.)norm_final\.weight$"  # of Z-Image; nothing reads it
    r"|^(v_pred|ztsnr|dpdmd_text_encoder\.token_ids)$"
    r"|^(first_stage_model|vae)\."  # previews need a part of it only
    r"|^(cond_stage_model|conditioner\.embedders\.\d|text_encoders\.\w+)\..*"
    r"(text_projection(\.weight)?|embed_tokens\.weight|lm_head\.weight|rotary_emb\.inv_freq)$"
)
NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What a user wants otherwise than a checkpoint's files have it; nothing unless said.

    Attributes:
        sampling: what it predicts, and at which noise levels.
        text_encoders: files by kind ("clip_l", "t5xxl", ...) that replace or complete the file's.
        vae: a VAE file that replaces the file's.
        loras: merged into the denoiser, and into the text encoders whenever those are loaded.
    """

    sampling: AskedSampling = field(default_factory=AskedSampling)
    text_encoders: Mapping[str, Path] = field(default_factory=dict)
    vae: Path | None = None
    loras: Sequence[MergingLora] = ()

    @classmethod
    def of(
        cls,
        files: ModelFiles,
        asked: AskedSampling,
        loras: Sequence[MergingLora],
    ) -> Overrides:
        """Those of a request, with its LoRAs."""
        return cls(
            sampling=asked,
            text_encoders=files.text_encoders(),
            vae=Path(files.vae) if files.vae else None,
            loras=loras,
        )


def model_name(path: Path) -> str:
    """A file's name without its ending, a folder's whole name (which may hold a version)."""
    return path.name if path.is_dir() else path.stem


AS_STORED = Overrides()


@dataclass(kw_only=True)
class Checkpoint:
    """What is known of a checkpoint, and its parts that are loaded on demand.

    Attributes:
        path: the file or folder.
        detection: what it is; `prediction` is the setting's where one was given.
        family: facts of its family.
        config: the network's full diffusers config; `family.lora_keys(config)` works on it.
        dtype: of the denoiser's parameters.
        device: what computes.
        encoders: text encoders in use, checked and not loaded.
        decoder: the VAE decoder in use, checked and not loaded; None: a linear preview.
        notes: what the user should know about this checkpoint.
    """

    path: Path
    detection: Detection
    family: Family
    config: Config
    dtype: torch.dtype
    device: torch.device
    encoders: dict[str, Component]
    decoder: LatentDecoder | None
    notes: list[str]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule the checkpoint was trained with."""
        found = self.detection
        return family_schedule(
            self.family,
            found.zero_terminal_snr,
            prediction=found.prediction,
            shift=found.shift,
        )

    @property
    def half(self) -> TorchFamily:
        """The torch half of its family."""
        return half_of(self.family)


@dataclass(kw_only=True)
class OpenedCheckpoint(Checkpoint):
    """A checkpoint whose denoiser is not in memory yet.

    Prompts are encoded in this state: many cards cannot hold a text encoder beside the denoiser.

    Attributes:
        denoiser: the network, checked and not loaded.
    """

    denoiser: Component

    def load(self, onto: torch.device | str | None = None) -> LoadedCheckpoint:
        """The same with its denoiser in memory, by default on its device.

        Args:
            onto: where the denoiser goes, if it is to be moved to the device in another way.

        Raises:
            NonFiniteError: NaN or infinite weights.
        """
        network = self.denoiser.load(self.dtype, self.device if onto is None else onto)
        facts = {field.name: getattr(self, field.name) for field in fields(Checkpoint)}
        return LoadedCheckpoint(**facts, network=network)


@dataclass(kw_only=True)
class LoadedCheckpoint(Checkpoint):
    """A checkpoint whose denoiser is in memory.

    Attributes:
        network: the diffusers network, frozen.
    """

    network: nn.Module

    def call(self) -> NetworkCall:
        """The denoiser as the sampler and the trainer call it."""
        return NetworkCall(
            self.network,
            self.half,
            self.detection.prediction,
            self.schedule,
            self.device,
            self.dtype,
        )


def open_checkpoint(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    overrides: Overrides = AS_STORED,
) -> OpenedCheckpoint:
    """The checkpoint at `path`, looked up in its files' headers and checked.

    Args:
        path: a .safetensors file in the A1111/ComfyUI layout, or a diffusers folder.
        dtype: of the denoiser's parameters.
        device: what shall compute.

    Raises:
        CheckpointError: missing, damaged, incomplete or unsupported files.
        LoraError: a LoRA does not fit.
    """
    path = Path(path)
    parts, encoders = find_components(path, overrides.text_encoders, overrides.vae)
    detection, said = set_otherwise(parts.detection, overrides.sampling)
    notes = [*parts.checked.notes, *parts.detection.notes, *said]
    facts = family(detection.family)
    parts.denoiser.check()
    for component in encoders.values():
        component.check()
    notes += _describe_leftovers(parts, encoders)
    decoder = _decoder(parts, notes)
    notes += plan_merge(overrides.loras, parts.denoiser, encoders, facts)
    notes = list(dict.fromkeys(notes))
    for note in notes:
        logger.info("%s", note)
    return OpenedCheckpoint(
        path=path,
        detection=detection,
        family=facts,
        denoiser=parts.denoiser,
        config=parts.denoiser.config,
        dtype=dtype,
        device=torch.device(device),
        encoders=encoders,
        decoder=decoder,
        notes=notes,
    )


def _decoder(parts: Parts, notes: list[str]) -> LatentDecoder | None:
    """The VAE decoder for previews: the named file's, else the checkpoint's own, else none."""
    named = parts.checked.vae
    if named is not None:
        decoder = find_decoder([named], f"VAE {named.path.name}")
    else:
        try:
            decoder = (
                find_decoder(parts.vae_files, "the checkpoint's own VAE")
                if parts.vae_files
                else None
            )
        except CheckpointError as error:
            notes.append(str(error))
            decoder = None
    title = "a rough linear map (no VAE given)" if decoder is None else decoder.title
    notes.append(f"Previews are drawn through {title}.")
    return decoder


def _describe_leftovers(parts: Parts, encoders: Mapping[str, Component]) -> list[str]:
    """One line about unknown tensors in a single file, or none."""
    if parts.file is None:
        return []
    used = parts.denoiser.used()
    for component in encoders.values():
        used |= component.used()
    unused_prefixes = tuple(
        prefix
        for kind, prefixes in family(parts.detection.family).text.prefixes.items()
        if kind not in encoders
        for prefix in prefixes
    )
    unknown = [
        name
        for name in parts.file.tensors
        if name not in used
        and not KNOWN_EXTRAS.search(name)
        and not name.startswith(unused_prefixes or ("\0",))
    ]
    if not unknown:
        return []
    shown = ", ".join(unknown[:NAMES_SHOWN])
    more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
    return [f"{len(unknown)} unknown tensors in the file are ignored: {shown}{more}."]


def fitting_deltas(checkpoint: LoadedCheckpoint, lora: LoraFile, strength: float) -> Deltas:
    """What a LoRA adds to the checkpoint's network, by parameter.

    Raises:
        LoraError: it is of another family, or fits no layer.
    """
    shapes = parameter_shapes(checkpoint.network)
    deltas = lora_deltas(lora, checkpoint.family, checkpoint.config, shapes, strength)
    if not deltas:
        raise LoraError(f"{lora.path.name} changes no layer of {checkpoint.path.name}.")
    return deltas


def apply_lora(checkpoint: LoadedCheckpoint, lora: LoraFile, strength: float) -> None:
    """Merge a LoRA into the checkpoint's network; errors as `fitting_deltas`."""
    merge_lora(checkpoint.network, fitting_deltas(checkpoint, lora, strength))
