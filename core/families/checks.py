"""Whether a checkpoint and the files named beside it can be used, by their headers alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ..errors import CheckpointError
from ..files.tensor_file import TensorFile, read_model_header
from .base import Detection, Family, TensorSource
from .models import ModelHeaders, read_model
from .parts.complete import Stored, check_tensors
from .parts.encoders import (
    EncoderPlace,
    check_widths,
    encoder_in_file,
    encoders_in_use,
    read_encoder,
)
from .parts.vae import check_decoder, has_decoder
from .registry import FAMILIES, family
from .stated import stated_encoder

PARAMETERS = 4
"""More parameters than any network here has for each tensor of its file."""


@dataclass(frozen=True)
class CheckedModel:
    """A model of which all that headers tell says that it can be used.

    Attributes:
        model: what it is, and where its parts lie.
        encoders: where the text encoders in use lie, by kind.
        vae: header of the VAE file that was named beside it.
        notes: what is to be said of the text encoders.
    """

    model: ModelHeaders
    encoders: Mapping[str, EncoderPlace]
    vae: TensorFile | None
    notes: tuple[str, ...]


def check_model(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None = None
) -> CheckedModel:
    """The model at `path` with the files named beside it.

    Args:
        text_encoders: files that replace or complete the checkpoint's own, by kind.
        vae: a VAE file that replaces its own.

    Raises:
        CheckpointError: a file is missing, damaged, or does not belong to the model; all that is
            wrong with the parts of a model that is known stands in one message.
    """
    return _check(path, text_encoders, vae, complete=True)


def check_files(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None = None
) -> Detection:
    """What the checkpoint is, checked as by `check_model`."""
    return check_model(path, text_encoders, vae).model.detection


def check_own_parts(
    path: Path, text_encoders: Mapping[str, Path] | None = None, vae: Path | None = None
) -> Detection:
    """As `check_files`, for a model whose missing text encoders may still be named beside it.

    Its notes say which are missing.
    """
    return _check(path, text_encoders or {}, vae, complete=False).model.detection


def _check(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None, *, complete: bool
) -> CheckedModel:
    model = read_model(path)
    wrong: list[CheckpointError] = []
    named: dict[str, EncoderPlace] = {}
    for kind, file in text_encoders.items():
        with _noted(wrong):
            named[kind] = encoder_in_file(kind, file, FAMILIES)
    with _noted(wrong):
        _check_denoiser(model)
    missing: list[CheckpointError] = []
    used: dict[str, EncoderPlace] = {}
    notes: list[str] = []
    if len(named) == len(text_encoders):
        if not complete:
            with _noted(missing):
                _all_there(model, named, path.name)
        with _noted(wrong):
            if missing:
                for kind, place in (dict(model.encoders) | named).items():
                    read_encoder(kind, place)
            else:
                used, notes = _check_encoders(model, named, path.name)
    vae_file = None
    if vae is not None:
        with _noted(wrong):
            vae_file = _check_vae_file(vae, model.detection)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else CheckpointError("\n".join(map(str, wrong)))
    said = (*model.detection.notes, *map(str, missing))
    model = replace(model, detection=replace(model.detection, notes=said))
    return CheckedModel(model, used, vae_file, tuple(notes))


@contextmanager
def _noted(wrong: list[CheckpointError]) -> Iterator[None]:
    """Note what is wrong, so that the next thing can be looked at."""
    try:
        yield
    except CheckpointError as error:
        wrong.append(error)


def _all_there(model: ModelHeaders, named: Mapping[str, EncoderPlace], name: str) -> None:
    """CheckpointError, with what may be given, if a text encoder that is needed is missing."""
    if stated_encoder(model.detection) is None:
        found = [*model.encoders, *named]
        encoders_in_use(family(model.detection.family), found, [], name)


def _check_encoders(
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


def _check_denoiser(model: ModelHeaders) -> None:
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


def holds_vae(path: Path, facts: Family, channels: int) -> bool:
    """Whether a file holds the kind of VAE that the family's models have, no tiny one.

    Raises:
        CheckpointError: it cannot be read, or is for latents of other channels.
    """
    file = read_model_header(path)
    if not has_decoder(file, facts.vae.kind):
        return False
    return check_decoder([file], channels, f"VAE {path.name}", facts.vae.kind)


def _check_vae_file(path: Path, detection: Detection) -> TensorFile:
    """Header of a VAE file that the user named, once it is known to suit the model's latents.

    Raises:
        CheckpointError: it cannot be read, is no VAE, or is for latents of other channels.
    """
    file = read_model_header(path)
    kind = family(detection.family).vae.kind
    if not check_decoder([file], detection.latent_channels, f"VAE {path.name}", kind):
        raise CheckpointError(
            f"{path.name} holds no VAE decoder (--vae). Give a VAE or a TAESD decoder as "
            ".safetensors."
        )
    return file
