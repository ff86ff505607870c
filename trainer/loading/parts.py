"""The components of a checkpoint, found by their place in a file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...core.families import (
    ENCODER_PLACE,
    FAMILIES,
    Config,
    Detection,
    Family,
    TensorSource,
    denoiser_tensors,
    detect,
    detect_folder,
    encoder_folders,
    family,
    is_model_folder,
    read_folder,
    stated_encoder,
    text_encoder_prefix,
)
from ...core.files.tensor_file import TensorFile, read_model_header
from ..families import half_of
from .encoders import encoder_component
from .weights import Component, Weights

PRIVATE = "_"


@dataclass(frozen=True)
class Parts:
    """What was found, checked only as far as detection goes.

    Attributes:
        detection: family and variant.
        config: the denoiser's diffusers config.
        denoiser: its component.
        encoders: the text encoders that are there, by kind.
        file: the single file, or None for a folder.
        vae_files: headers of the file or shards the VAE lies in; empty if there is none.
    """

    detection: Detection
    config: Config
    denoiser: Component
    encoders: dict[str, Component]
    file: TensorFile | None
    vae_files: tuple[TensorFile, ...]


def single_file_parts(path: Path) -> Parts:
    """The parts of a .safetensors file."""
    file = read_model_header(path)
    detection = detect(file)
    facts = family(detection.family)
    config = facts.layout.network_config(denoiser_tensors(file, detection.denoiser_prefix))
    encoders = {}
    for kind in detection.text_encoders:
        own = kind == stated_encoder(detection)
        prefix = ENCODER_PLACE if own else text_encoder_prefix(file, facts, kind)
        assert prefix is not None
        encoders[kind] = encoder_component(kind, [file], prefix)
    return Parts(
        detection=detection,
        config=config,
        denoiser=Component(
            facts.layout.denoiser_title,
            _factory(facts, config),
            Weights([file], detection.denoiser_prefix),
            lambda name: facts.layout.tensor_source(name, config),
        ),
        encoders=encoders,
        file=file,
        vae_files=(file,) if detection.has_vae else (),
    )


def folder_parts(path: Path) -> Parts:
    """The parts of a diffusers folder."""
    if not is_model_folder(path):
        read_model_header(path)  # raises: a folder where a file is wanted
    folder = read_folder(path)
    detection = detect_folder(folder, FAMILIES)
    facts = family(detection.family)
    denoiser = folder.component(facts.layout.denoiser_folder)
    config = {k: v for k, v in denoiser.config.items() if not k.startswith(PRIVATE)}
    encoders = {}
    for kind, name in encoder_folders(facts).items():
        if folder.has(name):
            part = folder.component(name)
            encoders[kind] = encoder_component(kind, part.files, "", part.config)
    return Parts(
        detection=detection,
        config=config,
        denoiser=Component(
            facts.layout.denoiser_title,
            _factory(facts, config),
            Weights(denoiser.files),
            TensorSource,  # each parameter under its own name
        ),
        encoders=encoders,
        file=None,
        vae_files=folder.component("vae").files if detection.has_vae else (),
    )


def _factory(facts: Family, config: Config) -> Callable[[], nn.Module]:
    return lambda: half_of(facts).make_network(config)
