"""What a family's torch half consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from ...core.families import Config, Family
from .conditioning import Conditioning, Encoded


@dataclass(frozen=True)
class TorchFamily:
    """The half of a family that needs torch and diffusers.

    Attributes:
        facts: the other half; the registry goes by its name.
        network: the denoiser's class, made from a config that its instances hold.
        call: the one call of the network: (network, noised latents (B, C, H, W) in its dtype,
            timesteps (B,) as the schedule counts them, conditioning of the same batch size, the
            network's dtype) -> its prediction, (B, C, H, W).
        combine: what the denoiser is told, from what the encoders said about one prompt: (the
            denoiser's config, their outputs by kind).
    """

    facts: Family
    network: type[ConfigMixin]
    call: Callable[[nn.Module, Tensor, Tensor, Conditioning, torch.dtype], Tensor]
    combine: Callable[[Config, Mapping[str, Encoded]], Conditioning]

    def make_network(self, config: Config) -> nn.Module:
        """A denoiser of these dimensions."""
        made = self.network.from_config(config)
        assert isinstance(made, nn.Module)
        return made

    def vae_latents(self, latents: Tensor) -> Tensor:
        """The VAE's latents of the network's: latent / scaling + shift, (B, C, h, w)."""
        vae = self.facts.vae
        return latents / _by_channel(vae.scaling_factor, latents) + _by_channel(
            vae.shift_factor, latents
        )

    def combine_own(self, config: Config, encoded: Encoded) -> Conditioning:
        """The conditioning by an encoder that a checkpoint brings in place of the family's.

        Zeros fill it up to what the denoiser reads; it has a pooled vector if the family has.
        """
        text = self.facts.text
        width, pooled_width = width_of(config, text.context_width), 0
        if text.pooled_width:
            pooled_width = width_of(config, text.pooled_width)
        pooled = None
        if pooled_width:
            assert encoded.pooled is not None
            pooled = widen(encoded.pooled, pooled_width)
        tokens = widen(encoded.tokens, width)
        return Conditioning(tokens, pooled, repeatable=text.repeatable, masked=text.masked)


def width_of(config: Config, name: str) -> int:
    """A width in a network's config."""
    return int(str(config[name]))


def side_by_side(tokens: list[Tensor]) -> Tensor:
    """Tokens of several encoders in one row, as far as all of them have any; widths add up."""
    length = min(item.shape[1] for item in tokens)
    return torch.cat([item[:, :length] for item in tokens], dim=-1)


def widen(tensor: Tensor, width: int) -> Tensor:
    """Zeros behind on the last axis up to `width`."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))


def _by_channel(value: float | tuple[float, ...], latents: Tensor) -> float | Tensor:
    """The number, or the numbers of all channels in a shape that goes with latents."""
    if isinstance(value, tuple):
        return latents.new_tensor(value)[:, None, None]
    return value
