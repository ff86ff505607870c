"""VAEs as their headers and configs show them: where the decoder lies, whose latents it takes."""

from collections.abc import Mapping, Sequence
from typing import Literal

from ...errors import CheckpointError, UnsupportedModelError
from ...files.tensor_file import TensorFile, TensorInfo
from ..base import VaeFacts
from .config_values import is_number

VAE_PREFIXES = ("first_stage_model.", "vae.", "")
TINY_LAYOUTS = (("taesd_decoder.", 1), ("decoder.layers.", 0), ("", 1))
"""Prefix of a tiny decoder's layers, and how many its file counts before diffusers' first."""
KL_INPUT, WAN_INPUT = "decoder.conv_in.weight", "decoder.conv1.weight"
KL_CLASS, TINY_CLASS = "AutoencoderKL", "AutoencoderTiny"
GROUPS, VIDEO_AXES = 32, 5
KIND_TITLES = {"kl": "a KL VAE", "wan": "Wan's VAE, which Qwen-Image has, too"}


def tiny_layout(tensors: Mapping[str, TensorInfo]) -> tuple[str, int] | None:
    """The one of `TINY_LAYOUTS` that these tensors have, names without the VAE's prefix."""
    for prefix, offset in TINY_LAYOUTS:
        first = tensors.get(f"{prefix}{offset}.weight")
        if first is not None and len(first.shape) == 4:
            return prefix, offset
    return None


def decoder_input(tensors: Mapping[str, TensorInfo]) -> tuple[str, Literal["kl", "wan"]] | None:
    """(name of its first weight, kind) of a whole VAE's decoder; names without a prefix.

    Diffusers gives both kinds the same names: Wan's convolutions have an axis of time.
    """
    if WAN_INPUT in tensors:
        return WAN_INPUT, "wan"
    if KL_INPUT not in tensors:
        return None
    return KL_INPUT, "wan" if len(tensors[KL_INPUT].shape) == VIDEO_AXES else "kl"


def has_decoder(file: TensorFile, kind: Literal["kl", "wan"]) -> bool:
    """Whether a whole VAE's decoder of this kind is in a file."""
    found = (decoder_input(file.under(prefix)) for prefix in VAE_PREFIXES)
    return any(first is not None and first[1] == kind for first in found)


def check_decoder(
    files: Sequence[TensorFile], channels: int, title: str, kind: Literal["kl", "wan"]
) -> bool:
    """Whether a decoder is there; one that is not for latents of so many channels is refused.

    Args:
        files: headers of the file or shards it lies in.
        channels: of the model's latents.
        title: what to call the VAE.
        kind: of the model's own VAE; a tiny one does for any.

    Raises:
        CheckpointError: it is for other latents, or damaged.
    """
    for prefix in VAE_PREFIXES:
        tensors = {k: info for file in files for k, info in file.under(prefix).items()}
        first, layout = decoder_input(tensors), tiny_layout(tensors)
        axes = VIDEO_AXES if first is not None and first[1] == "wan" else 4
        if first is None and layout is not None:
            first = f"{layout[0]}{layout[1]}.weight", kind
        if first is None:
            continue
        name, found = first
        shape = tensors[name].shape
        if name == WAN_INPUT and len(shape) == 4:
            raise UnsupportedModelError(
                f"{title} is {KIND_TITLES['wan']}, cut down to single images ({prefix + name!r} "
                f"has shape {shape}), which is not read here. Give the whole VAE of that kind."
            )
        if len(shape) != axes or not all(shape):
            raise CheckpointError(
                f"{title}: {prefix + name!r} has shape {shape}; that of a convolution was "
                "expected. The file is damaged."
            )
        if shape[1] != channels:
            raise CheckpointError(
                f"{title} is for latents of {shape[1]} channels, but this model's have {channels}, "
                "so it belongs to another family. Give the VAE of this model's family."
            )
        if found != kind:
            raise CheckpointError(
                f"{title} is {KIND_TITLES[found]}, but this model's latents are those of "
                f"{KIND_TITLES[kind]}. Give the VAE of this model's family."
            )
        return True
    return False


def check_vae_config(config: Mapping[str, object], facts: VaeFacts, label: str) -> tuple[str, ...]:
    """Notes about how a folder's VAE scales latents.

    Args:
        config: the VAE's config.json.
        facts: the family's.
        label: what to call the config's file.

    Raises:
        UnsupportedModelError: the model's latents have statistics that are not handled.
    """
    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None and not isinstance(facts.scaling_factor, tuple):
            raise UnsupportedModelError(
                f"{label}: {name} is set, so the model's latents have statistics of their own (as "
                "Playground v2.5's), which are not supported. Give an ordinary model of the family."
            )
    if TINY_CLASS in str(config.get("_class_name")):
        return ()  # its scaling is part of it
    factors = {"scaling_factor": facts.scaling_factor, "shift_factor": facts.shift_factor}
    return tuple(
        f"{label}: {name} is {config[name]!r}; {own:g} is used, as models of this family have."
        for name, own in factors.items()
        if config.get(name) is not None
        and not isinstance(own, tuple)
        and not is_number(config[name], own)
    )


def folder_vae(
    config: Mapping[str, object], files: Sequence[TensorFile], channels: int, label: str
) -> tuple[Literal["kl", "tiny"] | None, tuple[str, ...]]:
    """(kind of a folder's VAE, notes); no kind if it cannot be used for previews."""
    kind = str(config.get("_class_name", KL_CLASS))
    groups = config.get("norm_num_groups", GROUPS)
    if kind not in (KL_CLASS, TINY_CLASS) or (kind == KL_CLASS and groups != GROUPS):
        what = kind if kind != KL_CLASS else f"of {groups} groups in its norms"
        note = f"{label}: a VAE {what} is not supported; {KL_CLASS} and {TINY_CLASS} are."
        return None, (note,)
    try:
        check_decoder(files, channels, label, "kl")
    except CheckpointError as error:
        return None, (str(error),)
    return "tiny" if kind == TINY_CLASS else "kl", ()
