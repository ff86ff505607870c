"""A LoRA file's bytes: header, tensors, and the hashes of the tensors in the header."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from .hashes import EMPTY_AUTOV1, legacy_hash, modelspec_hash, tensor_bytes_hash


def serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file's header and body, its own hashes among the metadata.

    The hashes cover the tensor bytes alone, so they can be computed first and stored beside them.
    """
    plain = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", plain[:8])
    entries, body = json.loads(plain[8 : 8 + length]), memoryview(plain)[8 + length :]
    trainer = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    model_hash = tensor_bytes_hash(body)
    legacy = legacy_hash(_header(entries, trainer) + bytes(body[: 2 << 20]))
    hashes = {
        "sshs_model_hash": model_hash,
        "modelspec.hash_sha256": modelspec_hash(model_hash),
    }
    if legacy != EMPTY_AUTOV1:  # it would name every small file alike
        hashes["sshs_legacy_hash"] = legacy
    return [_header(entries, {**metadata, **hashes}), body]


def _header(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    table = {"__metadata__": dict(metadata), **entries}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
