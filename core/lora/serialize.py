"""A LoRA file's bytes: header, tensors, and the hashes of the tensors in the header."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from ..files.hashes import tensor_bytes_hash
from .header import header_bytes, header_hashes


def serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file's header and body, its own hashes among the metadata.

    The hashes cover the tensor bytes alone, so they can be computed first and stored beside them.
    """
    plain = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", plain[:8])
    entries, body = json.loads(plain[8 : 8 + length]), memoryview(plain)[8 + length :]
    hashes = header_hashes(entries, metadata, tensor_bytes_hash(body), body)
    return [header_bytes(entries, {**metadata, **hashes}), body]
