"""Model families: detection from tensor names and shapes, and the facts of each family."""

import json
from pathlib import Path

from ..errors import CheckpointError
from ..files.tensor_file import TensorFile, TensorInfo, read_header
from . import sd1, sd3, sdxl
from .base import (
    DENOISER_PREFIXES,
    Config,
    Detection,
    Family,
    LoraKey,
    LoraTargets,
    Tensors,
    TensorSource,
    TensorTable,
    TextEncoder,
    VaeKind,
)
from .folder import detect_folder, encoder_folders, is_model_folder, read_folder
from .unsupported import refuse_quantised, refuse_storage, refuse_variants, unknown_model

FAMILIES: tuple[Family, ...] = (sd3.FAMILY, sdxl.FAMILY, sd1.FAMILY)
"""In the order they are tried."""

SHAPES_KEY = "dpdmd.shapes"
"""Metadata of the embedded teachers; gives the resolution they were trained at."""
TINY_VAE_KEY = "first_stage_model.taesd_decoder.1.weight"
KL_VAE_KEY = "first_stage_model.decoder.conv_in.weight"


def family(name: str) -> Family:
    """The family of that name: "sd1", "sdxl" or "sd3"."""
    return next(item for item in FAMILIES if item.name == name)


def identify(path: Path) -> Detection:
    """What the checkpoint at `path` is: a single file or a diffusers folder.

    Raises:
        CheckpointError: as `read_header` and `detect` do.
    """
    if path.is_dir() and is_model_folder(path):
        return detect_folder(read_folder(path), {item.name: item for item in FAMILIES})
    return detect(read_header(path))


def detect(file: TensorFile) -> Detection:
    """The family and variant of a single-file checkpoint, from names and shapes alone.

    Raises:
        UnsupportedModelError: a model that is recognised, or not, and cannot be used.
        CheckpointError: a LoRA, or a file without denoiser.
    """
    refuse_storage(file)
    by_prefix = {prefix: denoiser_tensors(file, prefix) for prefix in DENOISER_PREFIXES}
    for prefix, tensors in by_prefix.items():
        try:
            refuse_variants(file, tensors)
            for item in FAMILIES:
                if item.matches(tensors):
                    item.network_config(tensors)  # refuses what it cannot make sense of
                    return _detection(file, item, prefix, tensors)
        except (IndexError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{file.path.name} has a supported model's tensor names, but shapes of a wrong "
                "number of axes. The file is damaged; download it again."
            ) from error
    raise unknown_model(file.path, dict(by_prefix))


def denoiser_tensors(file: TensorFile, prefix: str) -> TensorTable:
    """The denoiser's tensors, names without the prefix."""
    return TensorTable(file.under(prefix), prefix, file.path.name)


def _detection(file: TensorFile, item: Family, prefix: str, tensors: Tensors) -> Detection:
    facts = item.describe(tensors, file.tensors)
    resolution = _shapes_resolution(file) or item.resolution
    limit = facts.get("max_resolution")
    return Detection(
        resolution=min(resolution, limit) if isinstance(limit, int) else resolution,
        family=item.name,
        latent_channels=_latent_channels(tensors),
        denoiser_prefix=prefix,
        resolution_multiple=item.resolution_multiple,
        text_encoders=tuple(
            name for name in item.text_encoder_prefixes if text_encoder_prefix(file, item, name)
        ),
        vae=_vae_kind(file.tensors),
        **facts,  # type: ignore[arg-type]
    )


def text_encoder_prefix(file: TensorFile, item: Family, name: TextEncoder) -> str | None:
    """Where text encoder `name` lies in the file, or None if it is not there."""
    endings = ("token_embedding.weight", "shared.weight", "positional_embedding")
    for prefix in item.text_encoder_prefixes.get(name, ()):
        if any(key.startswith(prefix) and key.endswith(endings) for key in file.tensors):
            return prefix
    return None


def _latent_channels(tensors: Tensors) -> int:
    for key in ("input_blocks.0.0.weight", "x_embedder.proj.weight"):
        if key in tensors:
            return tensors[key].shape[1]
    raise KeyError("denoiser without input layer")


def _vae_kind(tensors: dict[str, TensorInfo]) -> VaeKind | None:
    if TINY_VAE_KEY in tensors:
        return "tiny"
    return "kl" if KL_VAE_KEY in tensors else None


def _shapes_resolution(file: TensorFile) -> int | None:
    try:
        resolution = json.loads(file.metadata.get(SHAPES_KEY, "{}")).get("resolution")
    except (ValueError, AttributeError, RecursionError):
        return None
    valid = type(resolution) is int and 16 <= resolution <= 4096 and resolution % 16 == 0
    return resolution if valid else None


__all__ = [
    "FAMILIES",
    "Config",
    "Detection",
    "Family",
    "LoraKey",
    "LoraTargets",
    "TensorSource",
    "TextEncoder",
    "denoiser_tensors",
    "detect",
    "detect_folder",
    "encoder_folders",
    "family",
    "identify",
    "is_model_folder",
    "read_folder",
    "refuse_quantised",
    "text_encoder_prefix",
]
