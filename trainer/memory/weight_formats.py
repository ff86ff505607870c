"""How the weights of frozen layers are stored: as they are, or in 8 or 4 bits with scales.

A format only packs and unpacks. Nothing is computed in few bits: a layer unpacks its weight into
the network's number format, uses it and drops it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core.errors import SettingsError

Parts = tuple[Tensor, ...]
INT8_MAX = 127
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BITSANDBYTES = "bitsandbytes.functional"
NF4_BLOCK = 64  # weights that share a scale


class WeightFormat(Protocol):
    """Packs a weight into the tensors that are stored, and unpacks them again."""

    def pack(self, weight: Tensor) -> Parts:
        """The tensors to store for a weight (O, I) or (O, I, h, w)."""
        ...

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The weight of that shape and dtype; may share memory with `parts`."""
        ...


class Keep:
    """The weight itself."""

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        return (weight,)

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`."""
        return parts[0].to(dtype)


class Int8:
    """Signed bytes, symmetric, one fp32 scale per output channel."""

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        scale = _channel_scale(weight, INT8_MAX)
        return (weight / scale).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scale

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`; rounded once: bytes are exact in every dtype used."""
        return parts[0].to(dtype).mul_(parts[1])


class Fp8:
    """8-bit floats (e4m3), one fp32 scale per output channel."""

    def pack(self, weight: Tensor) -> Parts:
        """As `WeightFormat.pack`."""
        scale = _channel_scale(weight, FP8_MAX)
        return (weight / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scale

    def unpack(self, parts: Parts, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """As `WeightFormat.unpack`; rounded once, as for int8."""
        return parts[0].to(dtype).mul_(parts[1])


class Nf4:
    """4-bit normal floats in blocks of 64 with fp32 scales (arXiv:2305.14314), by bitsandbytes."""

    def __init__(self) -> None:
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


FORMATS: dict[str, type[WeightFormat]] = {"keep": Keep, "int8": Int8, "fp8": Fp8, "nf4": Nf4}


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


def _channel_scale(weight: Tensor, largest: float) -> Tensor:
    """fp32 scale per output channel, shape (O, 1, ...); 1 for channels of zeros."""
    around = tuple(range(1, weight.dim()))
    scale = weight.abs().amax(dim=around, keepdim=True).float() / largest
    return torch.where(scale > 0, scale, torch.ones_like(scale))
