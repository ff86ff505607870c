"""Model families: detection from tensor names and shapes, and the facts of each family."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
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
from .complete import Stored, check_tensors
from .encoders import (
    EncoderPlace,
    check_widths,
    encoder_in_file,
    encoders_in_use,
    read_encoder,
)
from .folder import (
    ModelFolder,
    detect_folder,
    encoder_folders,
    folder_files,
    is_model_folder,
    read_folder,
)
from .prediction import as_set, full_title, with_metadata
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
from .vae import check_decoder

FAMILIES: list[Family] = []
"""In the order they are tried."""
FAMILY_LABELS: dict[str, str] = {}
"""Short label of each family by its name, in the order in which people list them."""

TINY_VAE_KEY = "first_stage_model.taesd_decoder.1.weight"
KL_VAE_KEYS = ("first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight")
"""Hosts' name, and that under which Forge saves checkpoints."""
PRIVATE = "_"
PARAMETERS = 4
"""More parameters than any network here has for each tensor of its file."""


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
            encoders[kind] = EncoderPlace(part.files, "", part.config)
    return ModelHeaders(
        detection=detection,
        config={k: v for k, v in denoiser.config.items() if not k.startswith(PRIVATE)},
        denoiser=denoiser.files,
        encoders=encoders,
        vae_files=folder.component("vae").files if detection.has_vae else (),
    )


def encoder_file(kind: str, path: Path) -> EncoderPlace:
    """Text encoder `kind` in a file that the user named for it.

    Raises:
        CheckpointError: the file does not hold such an encoder.
    """
    return encoder_in_file(kind, path, FAMILIES)


def check_encoders(
    model: ModelHeaders, named: Mapping[str, EncoderPlace], name: str
) -> tuple[dict[str, EncoderPlace], list[str]]:
    """(the text encoders in use by kind, notes), once they are known to fit the denoiser.

    Args:
        named: those that replace or complete the checkpoint's own.
        name: the checkpoint's.

    Raises:
        CheckpointError: one is missing, damaged, or does not belong to the model.
    """
    own = stated_encoder(model.detection)
    if own is not None and own in model.encoders:
        if named:
            given = ", ".join(place.label for place in named.values())
            raise CheckpointError(
                f"{name} brings a text encoder of its own, which {given} cannot replace. Leave the "
                "options for text encoders out."
            )
        return {own: model.encoders[own]}, []
    facts, found = family(model.detection.family), {**model.encoders, **named}
    kinds, notes = encoders_in_use(facts, list(found), list(named), name)
    used = {kind: found[kind] for kind in kinds}
    widths = {kind: read_encoder(kind, place) for kind, place in used.items()}
    known = {kind: width for kind, width in widths.items() if width is not None}
    if len(known) == len(widths):
        check_widths(facts, model.config, known)
    return used, notes


def set_otherwise(
    detection: Detection,
    *,
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    shift: float | None = None,
) -> tuple[Detection, list[str]]:
    """(the detection as the user's settings have it, notes on what they change).

    Args:
        prediction: in place of what the files say; None leaves it.
        zero_terminal_snr: the same, of a model that predicts v.
        shift: the same, of a flow.

    Raises:
        SettingsError: models of the family are not so.
    """
    return as_set(
        detection,
        family(detection.family).sampling,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        shift=shift,
    )


def check_own_parts(
    path: Path, text_encoders: Mapping[str, Path] | None = None, vae: Path | None = None
) -> Detection:
    """As `check_files`, for a model whose missing text encoders may still be named beside it.

    Its notes say which are missing.
    """
    return _check(path, text_encoders or {}, vae, complete=False)


def check_files(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None = None
) -> Detection:
    """What the checkpoint is, once all that its headers tell says that it can be used.

    Args:
        text_encoders: files that replace or complete the checkpoint's own, by kind.
        vae: a VAE file that replaces its own.

    Raises:
        CheckpointError: a file is missing, damaged, or does not belong to the model; all that is
            wrong with the parts of a model that is known stands in one message.
    """
    return _check(path, text_encoders, vae, complete=True)


def _check(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None, *, complete: bool
) -> Detection:
    model = read_model(path)
    wrong: list[CheckpointError] = []
    named: dict[str, EncoderPlace] = {}
    for kind, file in text_encoders.items():
        with _noted(wrong):
            named[kind] = encoder_file(kind, file)
    with _noted(wrong):
        check_denoiser(model)
    notes: list[str] = []
    if len(named) == len(text_encoders):
        with _noted(wrong):
            notes += _check_named(model, named, path.name, complete=complete)
    if vae is not None:
        with _noted(wrong):
            check_vae_file(vae, model.detection)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else CheckpointError("\n".join(map(str, wrong)))
    return replace(model.detection, notes=(*model.detection.notes, *notes))


@contextmanager
def _noted(wrong: list[CheckpointError]) -> Iterator[None]:
    """Note what is wrong, so that the next thing can be looked at."""
    try:
        yield
    except CheckpointError as error:
        wrong.append(error)


def _check_named(
    model: ModelHeaders, named: Mapping[str, EncoderPlace], name: str, *, complete: bool
) -> list[str]:
    """Look at the text encoders; unless `complete`, missing ones are a note and not refused."""
    facts, found = family(model.detection.family), {**model.encoders, **named}
    missing: list[CheckpointError] = []
    if not complete and stated_encoder(model.detection) is None:
        with _noted(missing):
            encoders_in_use(facts, list(found), [], name)
    if not missing:
        check_encoders(model, named, name)
    else:
        for kind, place in found.items():
            read_encoder(kind, place)
    return list(map(str, missing))


def check_denoiser(model: ModelHeaders) -> None:
    """Look whether the denoiser has every tensor, each in its shape.

    Raises:
        CheckpointError: names those that are missing, or the first that is misshaped.
    """
    layout, prefix = family(model.detection.family).layout, model.detection.denoiser_prefix
    infos = {k: info for file in model.denoiser for k, info in file.under(prefix).items()}
    needed = {}
    # A config may ask for more than anybody can list; what goes beyond the file is missing anyway.
    for name, shape in islice(layout.parameters(model.config), PARAMETERS * len(infos)):
        plain = model.detection.folder
        source = TensorSource(name) if plain else layout.tensor_source(name, model.config)
        needed[name] = (source, shape)
    first = model.denoiser[0].path
    label = first.name if len(model.denoiser) == 1 else f"{first.parent.name}/"
    check_tensors(Stored(label, prefix, infos), needed, layout.denoiser_title)


def check_vae_file(path: Path, detection: Detection) -> TensorFile:
    """Header of a VAE file that the user named, once it is known to suit the model's latents.

    Raises:
        CheckpointError: it cannot be read, or is for latents of other channels.
    """
    file = read_model_header(path)
    check_decoder([file], detection.latent_channels, f"VAE {path.name}")
    return file


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
    if found.has_vae:
        try:
            check_decoder([file], found.latent_channels, f"The VAE in {file.path.name}")
        except CheckpointError as error:
            found = replace(found, vae=None, notes=(str(error),))
    found = with_metadata(found, file.metadata, item.sampling, file.path.name)
    title = full_title(
        found.title, found.prediction, found.zero_terminal_snr, item.sampling.predictions
    )
    return replace(found, title=title)


def text_encoder_prefix(file: TensorFile, item: Family, kind: str) -> str | None:
    """Where a text encoder of the family lies in the file, or None if it is not there."""
    endings = (
        "token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight",
        "positional_embedding",
    )  # fmt: skip
    for prefix in item.text.prefixes.get(kind, ()):
        if any(key.startswith(prefix) and key.endswith(endings) for key in file.tensors):
            return prefix
    return None


def _vae_kind(tensors: dict[str, TensorInfo]) -> Literal["kl", "tiny"] | None:
    if TINY_VAE_KEY in tensors:
        return "tiny"
    return "kl" if any(key in tensors for key in KL_VAE_KEYS) else None


__all__ = [
    "ENCODER_PLACE",
    "FAMILIES",
    "FAMILY_LABELS",
    "STATED_KEY",
    "BaseModel",
    "Config",
    "Detection",
    "EncoderPlace",
    "Family",
    "LoraKey",
    "LoraTargets",
    "ModelHeaders",
    "TensorSource",
    "VaeFacts",
    "check_denoiser",
    "check_encoders",
    "check_files",
    "check_own_parts",
    "check_vae_file",
    "detect",
    "encoder_file",
    "family",
    "identify",
    "is_model_folder",
    "read_folder",
    "read_model",
    "refuse_quantised",
    "register",
    "set_otherwise",
    "stated_encoder",
    "stated_settings",
    "states",
    "weight_files",
]
