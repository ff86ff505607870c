"""The components of a checkpoint, found by their place in a file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...core.families import (
    CheckedModel,
    Config,
    Detection,
    EncoderPlace,
    Family,
    ModelHeaders,
    TensorSource,
    check_model,
    family,
)
from ...core.files.tensor_file import TensorFile
from ..families import half_of
from .encoders import encoder_component
from .weights import Component, Weights


@dataclass(frozen=True)
class Parts:
    """What was found, checked as far as headers tell.

    Attributes:
        checked: its headers, and those of the files named beside it.
        denoiser: the denoiser's component.
    """

    checked: CheckedModel
    denoiser: Component

    @property
    def detection(self) -> Detection:
        """Family and variant."""
        return self.checked.model.detection

    @property
    def config(self) -> Config:
        """The denoiser's diffusers config."""
        return self.checked.model.config

    @property
    def file(self) -> TensorFile | None:
        """The single file, or None for a folder."""
        return None if self.detection.folder else self.checked.model.denoiser[0]

    @property
    def vae_files(self) -> tuple[TensorFile, ...]:
        """Headers of the file or shards the VAE lies in; empty if there is none."""
        return self.checked.model.vae_files


def find_components(
    path: Path, text_encoders: Mapping[str, Path], vae: Path | None = None
) -> tuple[Parts, dict[str, Component]]:
    """(parts of the checkpoint, text encoders in use by kind); nothing is loaded.

    Args:
        path: a .safetensors file or a diffusers folder.
        text_encoders: files that replace or complete the checkpoint's own.
        vae: a VAE file that replaces its own.

    Raises:
        CheckpointError: as `check_model`.
    """
    checked = check_model(path, text_encoders, vae)
    facts = family(checked.model.detection.family)
    encoders = {kind: _encoder(kind, place) for kind, place in checked.encoders.items()}
    return Parts(checked, _denoiser(facts, checked.model)), encoders


def _denoiser(facts: Family, model: ModelHeaders) -> Component:
    weights = Weights(model.denoiser, model.detection.denoiser_prefix)
    factory, title = _factory(facts, model.config), facts.layout.denoiser_title
    if model.detection.folder:
        return Component(title, factory, weights, TensorSource)  # each under its own name
    return Component(
        title, factory, weights, lambda name: facts.layout.tensor_source(name, model.config)
    )


def _encoder(kind: str, place: EncoderPlace) -> Component:
    return encoder_component(kind, place.files, place.prefix, place.config)


def _factory(facts: Family, config: Config) -> Callable[[], nn.Module]:
    return lambda: half_of(facts).make_network(config)
