"""How the weights of frozen layers are stored: as they are, or in 8 or 4 bits with scales.

A format only packs and unpacks. Nothing is computed in few bits: a layer unpacks its weight into
the network's number format, uses it and drops it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import SettingsError

Parts = tuple[Tensor, ...]
BITSANDBYTES = "bitsandbytes.functional"
NF4_BLOCK = 64  # weights that share a scale
INT8_LARGEST = 127.0


@dataclass(frozen=True)
class WeightFormat:
    """Packs a weight into the tensors that are stored, and unpacks them; this one as it is."""

    def pack(self, weight: Tensor) -> Parts:
        """The tensors to store for a weight (O, I) or (O, I, h, w)."""
        return (weight,)

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The weight of that shape and dtype; may share memory with `parts`."""
        return parts[0].to(dtype)


@dataclass(frozen=True)
class Int8(WeightFormat):
    """Whole numbers of 8 bit, symmetric, with one fp32 scale per output channel."""

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        around = tuple(range(1, weight.dim()))
        scale = weight.abs().amax(dim=around, keepdim=True).float() / INT8_LARGEST
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # channels of zeros
        numbers = (weight / scale).round_().clamp_(-INT8_LARGEST, INT8_LARGEST)
        return numbers.to(torch.int8), scale

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`; rounded once: the stored numbers are exact in every dtype."""
        return parts[0].to(dtype).mul_(parts[1])


@dataclass(frozen=True)
class Nf4(WeightFormat):
    """4-bit normal floats in blocks of 64 with fp32 scales (arXiv:2305.14314), by bitsandbytes."""

    def __post_init__(self) -> None:
        """Raises:
        SettingsError: bitsandbytes is not installed, or does not work here.
        """
        try:
            importlib.import_module(BITSANDBYTES)
        except (ImportError, OSError, RuntimeError) as error:
            raise SettingsError(
                f"base_weights nf4 needs the package bitsandbytes, which cannot be imported "
                f"({str(error).splitlines()[0]}). Install it with `python install.py --with-8bit`, "
                "or choose --base-weights int8, which needs no package."
            ) from error

    @property
    def _library(self) -> Any:
        return sys.modules[BITSANDBYTES]

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        # flat: bitsandbytes 0.50 on CPUs misreads rows that are no multiple of the block
        packed, state = self._library.quantize_4bit(
            weight.reshape(-1), blocksize=NF4_BLOCK, quant_type="nf4"
        )
        return packed, state.absmax

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`."""
        state = self._library.QuantState(
            parts[1],
            shape=torch.Size([shape.numel()]),
            dtype=dtype,
            blocksize=NF4_BLOCK,
            quant_type="nf4",
        )
        return self._library.dequantize_4bit(parts[0], state).view(shape)


KEEP = WeightFormat()
FORMATS: dict[str, Callable[[], WeightFormat]] = {
    "keep": WeightFormat,
    "int8": Int8,
    "nf4": Nf4,
}


def weight_format(name: str, device: torch.device, dtype: torch.dtype) -> WeightFormat:
    """The format of that name, tried on a small weight of the device and dtype at hand.

    Raises:
        SettingsError: it does not work there, or needs a package that is missing.
    """
    if name not in FORMATS:
        raise SettingsError(f"base_weights is {name!r}; choose {', '.join(FORMATS)}.")
    found = FORMATS[name]()
    try:
        weight = torch.linspace(-1, 1, 4 * 96, device=device).reshape(4, 96).to(dtype)
        again = found.unpack(found.pack(weight), weight.shape, dtype)
        reason = "" if bool((again - weight).abs().max() < 0.2) else "gives wrong numbers"
    except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise SettingsError(
            f"base_weights {name} does not work on {device.type} with "
            f"{str(dtype).removeprefix('torch.')} ({reason}). Choose --base-weights int8 or keep."
        )
    return found
