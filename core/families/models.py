"""What a checkpoint is and where its parts lie, be it a file or a folder, by its headers alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..files.tensor_file import TensorFile, TensorInfo, read_model_header
from .base import DENOISER_PREFIXES, Config, Detection, Family, Tensors, TensorTable
from .few_step_names import few_step_notes
from .parts.encoders import EncoderPlace
from .parts.folder import (
    ModelFolder,
    detect_folder,
    encoder_folders,
    encoder_prefix,
    folder_files,
    is_model_folder,
    read_folder,
)
from .parts.vae import check_decoder
from .prediction import AskedSampling, full_title, set_otherwise, with_metadata
from .registry import FAMILIES, family
from .stated import ENCODER_PLACE, read_stated, stated_encoder, stated_resolution
from .unsupported import refuse_empty, refuse_storage, refuse_variants, unknown_model

TINY_VAE_KEY = "first_stage_model.taesd_decoder.1.weight"
KL_VAE_KEYS = ("first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight")
"""Hosts' name, and that under which Forge saves checkpoints."""
WAN_VAE_KEYS = tuple(key.replace("conv_in", "conv1") for key in KL_VAE_KEYS)
FIRST_TENSORS = ("embed_tokens.weight", "embed.weight")
"""Whole names of the first tensor of encoders whose names end as others' do."""
PRIVATE = "_"


@dataclass(frozen=True)
class ModelHeaders:
    """What a checkpoint's headers and configs tell, whether it is a file or a folder.

    Attributes:
        config: the denoiser's diffusers config.
        denoiser: header of the file, or of the shards, that the denoiser lies in.
        encoders: where the text encoders lie that it brings, by kind.
        vae_files: headers of the file or shards of a VAE that can be used; empty without.
    """

    detection: Detection
    config: Config
    denoiser: tuple[TensorFile, ...]
    encoders: Mapping[str, EncoderPlace]
    vae_files: tuple[TensorFile, ...]


def identify(path: Path) -> Detection:
    """What the checkpoint at `path` is: a single file or a diffusers folder.

    Raises:
        CheckpointError: as `read_model_header` and `detect` do.
    """
    return read_model(path).detection


def read_model(path: Path) -> ModelHeaders:
    """What the checkpoint at `path` is, and where its parts lie.

    Raises:
        CheckpointError: it is missing, damaged, or cannot be used.
    """
    if path.is_dir() and is_model_folder(path):
        return _read_folder(read_folder(path))
    file = read_model_header(path)
    detection = detect(file)
    facts = family(detection.family)
    encoders = {}
    for kind in detection.text_encoders:
        own = kind == stated_encoder(detection)
        prefix = ENCODER_PLACE if own else text_encoder_prefix(file, facts, kind)
        assert prefix is not None
        encoders[kind] = EncoderPlace((file,), prefix)
    return ModelHeaders(
        detection=detection,
        config=facts.layout.network_config(denoiser_tensors(file, detection.denoiser_prefix)),
        denoiser=(file,),
        encoders=encoders,
        vae_files=(file,) if detection.has_vae else (),
    )


def _read_folder(folder: ModelFolder) -> ModelHeaders:
    detection = detect_folder(folder, FAMILIES)
    facts = family(detection.family)
    denoiser = folder.component(facts.layout.denoiser_folder)
    encoders = {}
    for kind, name in encoder_folders(facts).items():
        if folder.has(name):
            part = folder.component(name)
            encoders[kind] = EncoderPlace(part.files, encoder_prefix(part.files), part.config)
    return ModelHeaders(
        detection=detection,
        config={k: v for k, v in denoiser.config.items() if not k.startswith(PRIVATE)},
        denoiser=denoiser.files,
        encoders=encoders,
        vae_files=folder.component("vae").files if detection.has_vae else (),
    )


def gains_by_half(path: Path, asked: AskedSampling) -> bool:
    """Whether a checkpoint is stored in float16 and predicts eps or v.

    What predicts those divides by alpha to find x0, and so minds a number's digits.

    Raises:
        CheckpointError: a header cannot be read.
        SettingsError: models of the family are not as asked.
    """
    model = read_model(path)
    detection, _ = set_otherwise(model.detection, asked)
    counts: Counter[str] = Counter()
    for file in model.denoiser:
        for info in file.under(detection.denoiser_prefix).values():
            counts[info.dtype] += info.count
    return detection.prediction != "flow" and counts.most_common(1)[0][0] == "F16"


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
    channels = {"latent_channels": tensors[item.detection.input_layer].shape[1]}
    found = Detection(
        resolution=min(resolution, limit) if isinstance(limit, int) else resolution,
        family=item.name,
        denoiser_prefix=prefix,
        resolution_multiple=item.sampling.resolution_multiple,
        text_encoders=tuple(kinds),
        vae=_vae_kind(file.tensors),
        stated=stated,
        **(channels | facts),  # type: ignore[arg-type]
    )
    if found.has_vae:
        try:
            title = f"The VAE in {file.path.name}"
            check_decoder([file], found.latent_channels, title, item.vae.kind)
        except CheckpointError as error:
            found = replace(found, vae=None, notes=(str(error),))
    found = with_metadata(found, file.metadata, item.sampling, file.path.name)
    hints = few_step_notes(file.path.name, file.metadata)
    title = full_title(
        found.title, found.prediction, found.zero_terminal_snr, item.sampling.predictions
    )
    return replace(found, title=title, notes=(*found.notes, *hints))


def text_encoder_prefix(file: TensorFile, item: Family, kind: str) -> str | None:
    """Where a text encoder of the family lies in the file, or None if it is not there."""
    endings = (
        "token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight",
        "positional_embedding",
    )  # fmt: skip
    for prefix in item.text.prefixes.get(kind, ()):
        whole = tuple(prefix + name for name in FIRST_TENSORS)
        if any(
            key in whole or (key.startswith(prefix) and key.endswith(endings))
            for key in file.tensors
        ):
            return prefix
    return None


def _vae_kind(tensors: dict[str, TensorInfo]) -> Literal["kl", "wan", "tiny"] | None:
    if TINY_VAE_KEY in tensors:
        return "tiny"
    if any(key in tensors for key in WAN_VAE_KEYS):
        return "wan"
    return "kl" if any(key in tensors for key in KL_VAE_KEYS) else None
