"""The hashes by which sites and hosts recognise a model file. Bytes only; torch is not needed.

| name             | definition                                                             |
|------------------|------------------------------------------------------------------------|
| AutoV1           | first 8 hex of SHA256 over 0x10000 bytes at offset 0x100000            |
| AutoV2           | first 10 hex of SHA256 over the whole file                             |
| AutoV3           | first 12 hex of SHA256 over what follows the safetensors header        |
| sshs_model_hash  | all 64 hex of that same digest                                         |
| sshs_legacy_hash | AutoV1 of the same tensors saved with nothing but the `ss_*` metadata  |
| hash_sha256      | ModelSpec: "0x" and the 64 hex of sshs_model_hash                      |
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

CHUNK = 1 << 20
LEGACY_OFFSET = 0x100000
LEGACY_LENGTH = 0x10000
# Digest of no bytes: what AutoV1 becomes for files under one mebibyte. It identifies nothing.
EMPTY_AUTOV1 = hashlib.sha256(b"").hexdigest()[:8]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FileHashes:
    """All hashes of one file; `tensors` and AutoV3 are empty unless it is a safetensors file."""

    sha256: str
    autov1: str
    tensors: str

    @property
    def autov2(self) -> str:
        """First ten digits of the file's SHA256."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        """First twelve digits of the SHA256 of the tensor bytes."""
        return self.tensors[:12]


_Key = tuple[str, int, int]
_sha256: dict[_Key, str] = {}
_hashes: dict[_Key, FileHashes] = {}


def file_hashes(path: Path, progress: Progress | None = None) -> FileHashes:
    """Every hash of the file in one pass; remembered while size and time of change stay the same.

    Args:
        progress: called with bytes done and bytes in all after each chunk.
    """
    path = Path(path)
    try:
        key = _key(path)
        if key not in _hashes:
            _hashes[key] = _all_hashes(path, key[1], progress)
            _sha256[key] = _hashes[key].sha256
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return _hashes[key]


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """SHA256 of the whole file, 64 hexadecimal digits; half the work of all hashes."""
    path = Path(path)
    try:
        key = _key(path)
        if key not in _sha256:
            digest = hashlib.sha256()
            for chunk in _chunks(path, key[1], progress):
                digest.update(chunk)
            _sha256[key] = digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return _sha256[key]


def _key(path: Path) -> _Key:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _chunks(path: Path, size: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(done, size)


def _all_hashes(path: Path, size: int, progress: Progress | None) -> FileHashes:
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        start = tensor_offset(file.read(9), size)
        file.seek(LEGACY_OFFSET)
        legacy = hashlib.sha256(file.read(LEGACY_LENGTH)).hexdigest()[:8]
    done = 0
    for chunk in _chunks(path, size, progress):
        whole.update(chunk)
        if start is not None:
            tensors.update(memoryview(chunk)[max(0, start - done) :])
        done += len(chunk)
    return FileHashes(whole.hexdigest(), legacy, "" if start is None else tensors.hexdigest())


def tensor_offset(first_bytes: bytes, size: int) -> int | None:
    """Where the tensor bytes of a safetensors file begin; None if it cannot be such a file."""
    if len(first_bytes) < 9 or first_bytes[8:9] != b"{":
        return None
    end = 8 + struct.unpack("<Q", first_bytes[:8])[0]
    return end if end <= size else None


def legacy_hash(data: bytes | memoryview) -> str:
    """AutoV1 of a file held in memory (`sshs_legacy_hash` of the ss_*-only serialisation)."""
    return hashlib.sha256(data[LEGACY_OFFSET : LEGACY_OFFSET + LEGACY_LENGTH]).hexdigest()[:8]


def tensor_bytes_hash(body: bytes | memoryview) -> str:
    """`sshs_model_hash` of the bytes that follow a safetensors header."""
    return hashlib.sha256(body).hexdigest()


def modelspec_hash(tensors_sha256: str) -> str:
    """`modelspec.hash_sha256` from the SHA256 of the tensor bytes."""
    return "0x" + tensors_sha256.lower()
