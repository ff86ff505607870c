"""Text encoder and VAE where hosts keep them, for a model that is published without them.

Hosts have a folder for each kind of file: models/text_encoders and models/vae beside
models/diffusion_models. A file that was named is never looked for, and none is taken silently.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from ...core.errors import CheckpointError
from ...core.families import (
    DENOISER_PREFIXES,
    ENCODER_FILES,
    Family,
    ModelHeaders,
    check_model,
    encoder_title,
    family,
    holds_vae,
    read_model,
    stated_encoder,
)
from ...core.files.tensor_file import read_model_header
from .request import ModelFiles

MODEL_PLACES = ("diffusion_models", "unet", "checkpoints", "stable-diffusion")
"""Hosts' folders of models, in small letters; those of their parts lie beside them."""
ENCODER_PLACES, VAE_PLACES = ("text_encoders", "text_encoder", "clip"), ("vae",)
SUFFIX = ".safetensors"
MAX_FILES = 500
"""Looked at in a folder and below."""
BELONGING = tuple(prefix for prefix in DENOISER_PREFIXES if prefix)
"""Before the names of a denoiser's tensors: whoever holds some is no part of another model."""
logger = logging.getLogger("dpdmd_studio.settings")


def with_found_files(
    model: ModelFiles, encoder_folders: Iterable[Path] = (), vae_folders: Iterable[Path] = ()
) -> tuple[ModelFiles, tuple[str, ...]]:
    """(the files with those that were found for what is missing, a line for each of them).

    Looked at are the checkpoint's own folder and the host's folders of parts. Of several files that
    fit, that with the published name is taken. Only headers are read.

    Args:
        encoder_folders, vae_folders: more of the host's folders.

    Raises:
        CheckpointError: several text encoders fit, and nothing says which is meant.
    """
    path = Path(model.checkpoint)
    try:
        headers = read_model(path) if path.is_file() else None
    except CheckpointError:
        headers = None  # whoever uses the file says what is wrong with it
    if headers is None or stated_encoder(headers.detection) is not None:
        return model, ()
    facts, notes = family(headers.detection.family), []
    for kind, published in facts.text.published.items():
        name = ENCODER_FILES[kind]
        if kind in headers.encoders or getattr(model, name):
            continue
        places = [*_beside(path, ENCODER_PLACES), *encoder_folders]
        fitting = _fitting(path, places, _encoder_check(path, kind))
        taken = _chosen(fitting, published)
        if taken is None and fitting:
            raise CheckpointError(
                f"{len(fitting)} files beside {path.name} may be its {encoder_title(kind)}: "
                f"{_listed(fitting)}. Say which with --{name}."
            )
        if taken is not None:
            model = dataclasses.replace(model, **{name: str(taken)})
            notes.append(_note(taken, encoder_title(kind), fitting))
    published = facts.sharing.published_vae
    if published and not headers.detection.has_vae and not model.vae:
        places = [*_beside(path, VAE_PLACES), *vae_folders]
        fitting = _fitting(path, places, _vae_check(facts, headers))
        taken = _chosen(fitting, published)
        if taken is not None:
            model = dataclasses.replace(model, vae=str(taken))
            notes.append(_note(taken, "VAE", fitting))
        elif fitting:
            notes.append(
                f"{len(fitting)} files beside {path.name} may be its VAE: {_listed(fitting)}. None "
                "is taken; say which with --vae."
            )
    return model, tuple(notes)


def completed(model: ModelFiles) -> ModelFiles:
    """The files with those that were found, each of which is logged; errors as there."""
    model, notes = with_found_files(model)
    for note in notes:
        logger.info("%s", note)
    return model


def _beside(path: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders of these names that stand beside the host's folder that a model lies in."""
    path = Path(os.path.abspath(path))
    above = next((p for p in path.parents if p.name.lower() in MODEL_PLACES), None)
    if above is None:
        return []
    try:
        beside = sorted(folder for folder in above.parent.iterdir() if folder.is_dir())
    except OSError:
        return []
    return [folder for folder in beside if folder.name.lower() in names]


def _fitting(path: Path, places: Iterable[Path], check: Callable[[Path], bool]) -> list[Path]:
    """Files in the model's folder, or in these and below, that pass a check; links count once."""
    found: dict[Path, Path] = {}
    for file in [*_files(path.parent, below=False), *(f for p in places for f in _files(p))]:
        resolved = file.resolve()
        if resolved in found or resolved == path.resolve():
            continue
        try:
            if check(file):
                found[resolved] = file
        except CheckpointError:
            continue  # of another model, or damaged
    return list(found.values())


def _files(folder: Path, *, below: bool = True) -> Iterator[Path]:
    walked = os.walk(folder) if below else islice(os.walk(folder), 1)
    files = (Path(parent) / name for parent, _, names in walked for name in sorted(names))
    return islice((file for file in files if file.suffix.lower() == SUFFIX), MAX_FILES)


def _is_part(file: Path) -> bool:
    """Whether a file holds no denoiser."""
    return not any(key.startswith(BELONGING) for key in read_model_header(file).tensors)


def _encoder_check(path: Path, kind: str) -> Callable[[Path], bool]:
    def check(file: Path) -> bool:
        return _is_part(file) and bool(check_model(path, {kind: file}))

    return check


def _vae_check(facts: Family, headers: ModelHeaders) -> Callable[[Path], bool]:
    def check(file: Path) -> bool:
        return _is_part(file) and holds_vae(file, facts, headers.detection.latent_channels)

    return check


def _chosen(fitting: list[Path], published: str) -> Path | None:
    """The one file, or the one with the published name."""
    named = [file for file in fitting if file.name.lower() == published]
    return next((one[0] for one in (fitting, named) if len(one) == 1), None)


def _label(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _listed(files: list[Path]) -> str:
    return ", ".join(map(_label, files))


def _note(taken: Path, what: str, fitting: list[Path]) -> str:
    others = [file for file in fitting if file != taken]
    more = f", not {_listed(others)}, since it has the published name" if others else ""
    return f"{what}: {_label(taken)} is taken, as none was named{more}."
