"""Model families: detection from tensor names and shapes, and the facts of each family."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..files.tensor_file import TensorFile, TensorInfo, read_model_header
from . import sd1, sd3, sdxl
from .base import (
    DENOISER_PREFIXES,
    BaseModel,
    Config,
    Detection,
    Family,
    LoraKey,
    LoraTargets,
    Tensors,
    TensorSource,
    TensorTable,
    VaeFacts,
)
from .folder import detect_folder, encoder_folders, folder_files, is_model_folder, read_folder
from .prediction import full_title, with_metadata
from .stated import (
    ENCODER_PLACE,
    STATED_KEY,
    read_stated,
    stated_encoder,
    stated_resolution,
    stated_settings,
    states,
)
from .unsupported import (
    refuse_empty,
    refuse_quantised,
    refuse_storage,
    refuse_variants,
    unknown_model,
)

FAMILIES: list[Family] = []
"""In the order they are tried."""
FAMILY_LABELS: dict[str, str] = {}
"""Short label of each family by its name, in the order in which people list them."""

TINY_VAE_KEY = "first_stage_model.taesd_decoder.1.weight"
KL_VAE_KEY = "first_stage_model.decoder.conv_in.weight"


def register(item: Family) -> None:
    """Make a family known; it is tried before those that were known."""
    assert item.name not in FAMILY_LABELS, f"two families are named {item.name}"
    FAMILIES.insert(0, item)
    FAMILY_LABELS[item.name] = item.short_label


for _item in (sd1.FAMILY, sdxl.FAMILY, sd3.FAMILY):
    register(_item)


def family(name: str) -> Family:
    """The family of that name."""
    return next(item for item in FAMILIES if item.name == name)


def identify(path: Path) -> Detection:
    """What the checkpoint at `path` is: a single file or a diffusers folder.

    Raises:
        CheckpointError: as `read_model_header` and `detect` do.
    """
    if path.is_dir() and is_model_folder(path):
        return detect_folder(read_folder(path), FAMILIES)
    return detect(read_model_header(path))


def weight_files(path: Path) -> list[TensorFile]:
    """Headers of the checkpoint's files: of a folder those alone that are read of it.

    Raises:
        CheckpointError: a header cannot be read.
    """
    if path.is_dir() and is_model_folder(path):
        return list(folder_files(read_folder(path), FAMILIES))
    return [read_model_header(path)]


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
                if item.detection.matches(tensors):
                    refuse_empty(file.path.name, prefix, tensors)
                    item.layout.network_config(tensors)  # refuses what it cannot make sense of
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
    facts = item.detection.describe(tensors, file.tensors)
    stated = read_stated(file)
    resolution = stated_resolution(stated) or item.sampling.resolution
    limit = facts.get("max_resolution")
    kinds = [kind for kind in item.text.prefixes if text_encoder_prefix(file, item, kind)]
    if "text_encoder" in stated:
        kinds.append(str(stated["text_encoder"]))
    found = Detection(
        resolution=min(resolution, limit) if isinstance(limit, int) else resolution,
        family=item.name,
        latent_channels=tensors[item.detection.input_layer].shape[1],
        denoiser_prefix=prefix,
        resolution_multiple=item.sampling.resolution_multiple,
        text_encoders=tuple(kinds),
        vae=_vae_kind(file.tensors),
        stated=stated,
        **facts,  # type: ignore[arg-type]
    )
    found = with_metadata(found, file.metadata, item.sampling.predictions, file.path.name)
    title = full_title(found.title, found.prediction, found.zero_terminal_snr)
    return replace(found, title=title)


def text_encoder_prefix(file: TensorFile, item: Family, kind: str) -> str | None:
    """Where a text encoder of the family lies in the file, or None if it is not there."""
    endings = ("token_embedding.weight", "shared.weight", "positional_embedding")
    for prefix in item.text.prefixes.get(kind, ()):
        if any(key.startswith(prefix) and key.endswith(endings) for key in file.tensors):
            return prefix
    return None


def _vae_kind(tensors: dict[str, TensorInfo]) -> Literal["kl", "tiny"] | None:
    if TINY_VAE_KEY in tensors:
        return "tiny"
    return "kl" if KL_VAE_KEY in tensors else None


__all__ = [
    "ENCODER_PLACE",
    "FAMILIES",
    "FAMILY_LABELS",
    "STATED_KEY",
    "BaseModel",
    "Config",
    "Detection",
    "Family",
    "LoraKey",
    "LoraTargets",
    "TensorSource",
    "VaeFacts",
    "denoiser_tensors",
    "detect",
    "detect_folder",
    "encoder_folders",
    "family",
    "identify",
    "is_model_folder",
    "read_folder",
    "refuse_quantised",
    "register",
    "stated_encoder",
    "stated_settings",
    "states",
    "text_encoder_prefix",
    "weight_files",
]
