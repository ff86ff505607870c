"""The header of a LoRA file as bytes, the hashes that stand in it, and copies with another header.

The tensors are never touched, so torch is not needed and AutoV3 stays what it was.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

from ..files.atomic_write import atomic_path
from ..files.hashes import EMPTY_AUTOV1, file_hashes, legacy_hash, modelspec_hash
from ..files.tensor_file import read_header

LEGACY_BYTES = 2 << 20
"""So many tensor bytes decide `sshs_legacy_hash`."""
HASH_KEYS = ("sshs_model_hash", "modelspec.hash_sha256", "sshs_legacy_hash")


def header_bytes(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a safetensors header, padded to eight bytes.

    Args:
        entries: dtype, shape and data_offsets of every tensor by name.
    """
    table = {"__metadata__": dict(metadata), **entries}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    content = text.encode("utf-8", "replace")  # lone surrogates have no UTF-8
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def header_hashes(
    entries: Mapping[str, object],
    metadata: Mapping[str, str],
    model_hash: str,
    body: bytes | memoryview,
) -> dict[str, str]:
    """The hashes that go into the metadata beside what is there.

    Args:
        model_hash: SHA256 of all tensor bytes.
        body: the tensor bytes, or the first `LEGACY_BYTES` of them.
    """
    trainer = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    legacy = legacy_hash(header_bytes(entries, trainer) + bytes(body[:LEGACY_BYTES]))
    hashes = {
        "sshs_model_hash": model_hash,
        "modelspec.hash_sha256": modelspec_hash(model_hash),
    }
    if legacy != EMPTY_AUTOV1:  # it would name every small file alike
        hashes["sshs_legacy_hash"] = legacy
    return hashes


def copy_with_metadata(source: Path, target: Path, changes: Mapping[str, str]) -> dict[str, str]:
    """Copy a LoRA file with some metadata changed and all its hashes right; its metadata.

    Where nothing changes the copy is the same file, byte for byte.

    Raises:
        CheckpointError: the source is missing, damaged, or not a safetensors file.
        OutputError: the target cannot be written.
    """
    file = read_header(source)
    entries = {
        name: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
        for name, info in file.tensors.items()
    }
    kept = {key: value for key, value in file.metadata.items() if key not in HASH_KEYS}
    metadata = kept | {key: value for key, value in changes.items() if value}
    with Path(source).open("rb") as stream:
        stream.seek(file.data_offset)
        first = stream.read(LEGACY_BYTES)
        hashes = header_hashes(entries, metadata, file_hashes(source).tensors, first)
        metadata |= hashes
        same = metadata == file.metadata
        stream.seek(0 if same else file.data_offset)
        with atomic_path(target) as temporary, temporary.open("wb") as output:
            if not same:
                output.write(header_bytes(entries, metadata))
            shutil.copyfileobj(stream, output, 1 << 20)
    return metadata
