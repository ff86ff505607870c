"""Latents to images, for previews: by a KL VAE, Wan's, a tiny one (TAESD), or a linear map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageDecoder3d
from diffusers.models.autoencoders.vae import Decoder, DecoderTiny
from torch import Tensor, nn

from ...core.errors import CheckpointError
from ...core.families import TensorSource
from ...core.families.parts.vae import (
    GROUPS,
    VAE_PREFIXES,
    WAN_INPUT,
    decoder_input,
    tiny_layout,
)
from ...core.files.tensor_file import TensorFile
from .weights import Component, Source, Weights

TINY_BLOCKS = (3, 3, 3, 1)
MAX_LEVELS = 16
SCALE_KEY, SHIFT_KEY = "vae_scale", "vae_shift"
LATENT_TO_PIXELS = 8
VAE_TOP = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


@dataclass(frozen=True)
class LatentDecoder:
    """A decoder in a file, and how the network's latents become its input.

    Attributes:
        component: the decoder; takes (B, C, h, w), gives RGB in [-1, 1].
        title: what to call it.
        takes_network_latents: a TAESD on its own was made for them; all others take VAE latents.
    """

    component: Component
    title: str
    takes_network_latents: bool = False


class KLDecoder(nn.Module):
    """The decoding half of a KL VAE."""

    def __init__(self, channels: list[int], layers: int, latents: int, quantised: bool) -> None:
        super().__init__()
        self.decoder = Decoder(
            in_channels=latents,
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=layers,
        )
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if quantised else None

    def forward(self, latents: Tensor) -> Tensor:
        """RGB in [-1, 1], shape (B, 3, 8h, 8w), of VAE latents (B, C, h, w)."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class WanDecoder(nn.Module):
    """The decoding half of Wan 2.1's and Qwen-Image's VAE, for single frames."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        # what it makes of time is left out: a first frame does not go through it
        self.decoder = QwenImageDecoder3d(width, latents, temperal_upsample=[False] * 3)
        self.post_quant_conv = nn.Conv3d(latents, latents, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """RGB in [-1, 1], shape (B, 3, 8h, 8w), of VAE latents (B, C, h, w)."""
        return self.decoder(self.post_quant_conv(latents[:, :, None]))[:, :, 0]


def find_decoder(files: Sequence[TensorFile], title: str) -> LatentDecoder:
    """The VAE decoder in `files`, checked.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    for prefix in VAE_PREFIXES:
        weights = Weights(files, prefix)
        first = decoder_input(weights.infos)
        if first is not None and first[1] == "kl":
            found = LatentDecoder(_kl_component(weights), f"{title} (KL)")
        elif first is not None:
            found = LatentDecoder(_wan_component(weights, first[0]), f"{title} (Wan)")
        elif layout := tiny_layout(weights.infos):
            bare = SCALE_KEY not in weights.infos
            found = LatentDecoder(_tiny_component(weights, *layout), f"{title} (tiny)", bare)
        else:
            continue
        found.component.check()
        return found
    raise CheckpointError(
        f"{files[0].path.name} holds no VAE decoder. Give a VAE or a TAESD decoder as .safetensors."
    )


def _kl_component(weights: Weights) -> Component:
    infos = weights.infos
    ours = "decoder.up_blocks.0.resnets.0.conv1.weight" in infos
    pattern = r"decoder\.up_blocks\.(\d{1,6})\." if ours else r"decoder\.up\.(\d{1,6})\."
    levels = 1 + max((int(m[1]) for key in infos if (m := re.match(pattern, key))), default=0)
    if levels > MAX_LEVELS:
        raise CheckpointError(
            f"{weights.label}: the VAE decoder counts {levels} levels. The file is damaged."
        )
    newer = "decoder.mid.attn_1.to_q.weight" in infos
    source: Source = TensorSource if ours else _vae_source(levels, newer=newer)
    if "decoder.mid_block.attentions.0.query.weight" in infos:
        source = _older_names

    def shape(name: str) -> tuple[int, ...]:
        info = infos.get(source(name).key)
        return info.shape if info and info.shape else (GROUPS,)  # absent: the check names it

    channels = [shape(f"decoder.up_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    if any(width == 0 or width % GROUPS for width in channels):
        raise CheckpointError(
            f"{weights.label}: the VAE decoder's levels have {channels} channels, expected "
            f"multiples of {GROUPS}. The file is damaged, or of a variant that is not supported."
        )
    layers = 0
    while source(f"decoder.up_blocks.0.resnets.{layers + 1}.conv1.weight").key in infos:
        layers += 1
    latents = infos["decoder.conv_in.weight"].shape[1]
    quantised = "post_quant_conv.weight" in infos
    return Component(
        "VAE decoder",
        lambda: KLDecoder(channels[::-1], layers, latents, quantised),
        weights,
        source,
    )


WAN_NAMES = (
    (r"^post_quant_conv\.", "conv2."),
    (r"^decoder\.conv_in\.", "decoder.conv1."),
    (r"^decoder\.norm_out\.", "decoder.head.0."),
    (r"^decoder\.conv_out\.", "decoder.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.(?=\w+$)(?<!decoder\.conv1\.)", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
WAN_LAYERS = 4
"""Of a level in Wan's list of them: three blocks, and what enlarges."""


def _wan_component(weights: Weights, first: str) -> Component:
    infos = weights.infos
    source: Source = _wan_source if first == WAN_INPUT else TensorSource
    head = infos.get(source("decoder.norm_out.gamma").key)
    latents = infos[first].shape[1]
    width = head.shape[0] if head and head.shape else 1  # absent: the check names it
    return Component("VAE decoder", lambda: WanDecoder(width, latents), weights, source)


def _wan_source(name: str) -> TensorSource:
    def layer(found: re.Match[str]) -> str:
        inner = int(found[3]) if found[2] == "resnets" else WAN_LAYERS - 1
        return f"decoder.upsamples.{WAN_LAYERS * int(found[1]) + inner}."

    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", layer, name)
    for ours, theirs in WAN_NAMES:
        name = re.sub(ours, theirs, name)
    return TensorSource(name)


def _vae_source(num_levels: int, *, newer: bool = False) -> Source:
    """For the decoder of a KL VAE under LDM names, which count the levels from the other end.

    Args:
        newer: whether its attention has diffusers' names, as files converted since 0.17 may.
    """

    def source(name: str) -> TensorSource:
        module, _, leaf = name.rpartition(".")
        if module == "post_quant_conv":
            return TensorSource(name)
        inner = module.removeprefix("decoder.")
        attention = inner.removeprefix("mid_block.attentions.0.")
        if attention != inner:
            change = "squeeze" if attention != "group_norm" and leaf == "weight" else "none"
            name = attention if newer else VAE_ATTENTION[attention]
            return TensorSource(f"decoder.mid.attn_1.{name}.{leaf}", None, change)
        return TensorSource(f"decoder.{_vae_module(inner, num_levels)}.{leaf}")

    return source


def _vae_module(inner: str, num_levels: int) -> str:
    for ours, ldm in VAE_TOP.items():
        if inner == ours or inner.startswith(ours + "."):
            return (ldm + inner[len(ours) :]).replace("conv_shortcut", "nin_shortcut")
    _, level, kind, index, rest = inner.split(".", 4)
    side = f"up.{num_levels - 1 - int(level)}"
    if kind == "upsamplers":
        return f"{side}.upsample.{rest}"
    return f"{side}.block.{index}.{rest}".replace("conv_shortcut", "nin_shortcut")


def _older_names(name: str) -> TensorSource:
    """The mid block's attention as diffusers called its parts before 0.17."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in older.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return TensorSource(name)


def _tiny_component(weights: Weights, prefix: str, offset: int) -> Component:
    width, latents = weights.infos[f"{prefix}{offset}.weight"].shape[:2]

    def source(name: str) -> TensorSource:
        _, index, rest = name.split(".", 2)
        return TensorSource(f"{prefix}{int(index) + offset}.{rest}")

    def factory() -> nn.Module:
        return DecoderTiny(latents, 3, TINY_BLOCKS, (width,) * 4, 2, "relu", "nearest")

    return Component("tiny VAE decoder", factory, weights, source)
