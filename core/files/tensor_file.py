"""The header of a safetensors file: names, dtypes, shapes and metadata, read without torch.

A safetensors file is an 8-byte little-endian length n, n bytes of JSON, then the tensor bytes
(https://github.com/huggingface/safetensors). Everything here treats the header as hostile: every
number is checked against the file's real size before anybody allocates or maps anything by it.
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeGuard

from ..errors import CheckpointError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the JSON header."""
MAX_RANK = 8
"""More axes than any weight has; guards the shape arithmetic."""
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Zero bytes that make a longer number of it, and the code of that number for `struct`.
SCALARS = {
    "F64": (0, "d"), "F32": (0, "f"), "F16": (0, "e"), "BF16": (2, "f"), "F8_E5M2": (1, "e"),
    "F8_E4M3": (0, ""), "I64": (0, "q"), "I32": (0, "i"), "I16": (0, "h"), "I8": (0, "b"),
    "U64": (0, "Q"), "U32": (0, "I"), "U16": (0, "H"), "U8": (0, "B"), "BOOL": (0, "?"),
}  # fmt: skip
# What torch.compile, FSDP, checkpointing and DistributedDataParallel put around a module.
WRAPPER = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."
)
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
CONVERT_HINT = (
    "Pickle files can run any code when opened, so they are refused. Convert it once to "
    ".safetensors: in AUTOMATIC1111 with Checkpoint Merger (method 'No interpolation', format "
    "safetensors), in ComfyUI with CheckpointLoaderSimple followed by CheckpointSave."
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the header; `start` and `end` count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The header of one safetensors file.

    `stored_names` holds the name in the file of every tensor that is called otherwise here.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    data_offset: int = 0
    stored_names: dict[str, str] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, TensorInfo]:
        """The tensors whose names start with `prefix`, with the prefix taken off."""
        length = len(prefix)
        return {k[length:]: info for k, info in self.tensors.items() if k.startswith(prefix)}


def read_header(path: str | os.PathLike[str]) -> TensorFile:
    """The header of the safetensors file at `path`, checked against the file's size.

    Raises:
        CheckpointError: the file is missing, a folder, empty, cut short, or not safetensors.
        UnsupportedModelError: a pickle or GGUF file.
    """
    path = Path(path)
    size = _file_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(10)
            _refuse_other_formats(path, head)
            length = _header_length(path, head, size)
            header = _parse(path, head[8:] + file.read(length - 2))
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror or error}. Check the file's permissions."
        ) from error
    metadata = _metadata(path, header.pop("__metadata__", None))
    _check_text(path, [*header, *metadata, *metadata.values()])
    tensors = dict(_tensors(path, header))
    _check_places(path, tensors, size - 8 - length)
    return TensorFile(path, tensors, metadata, 8 + length)


def read_scalar(file: BinaryIO, header: TensorFile, name: str) -> float | None:
    """The value of a tensor of one element; None if it has more or none, or is no real number.

    Args:
        file: the header's file, open for reading bytes.
    """
    info = header.tensors[name]
    if info.count != 1 or info.dtype not in SCALARS:
        return None
    file.seek(header.data_offset + info.start)
    content = file.read(info.end - info.start)
    lengthened, code = SCALARS[info.dtype]
    if info.dtype == "F8_E4M3":
        return _e4m3(content[0])
    return float(struct.unpack(f"<{code}", bytes(lengthened) + content)[0])


def _e4m3(byte: int) -> float:
    """An fp8 number of 4 bits of exponent and 3 of mantissa, without infinities."""
    exponent, mantissa, sign = byte >> 3 & 15, byte & 7, -1.0 if byte & 128 else 1.0
    if exponent == 15 and mantissa == 7:
        return math.nan
    whole = 8 + mantissa if exponent else mantissa
    return sign * whole * 2.0 ** (max(exponent, 1) - 10)


def read_model_header(path: str | os.PathLike[str]) -> TensorFile:
    """`read_header`, the tensors' names without what wrappers of modules put into them.

    torch.compile, for one, saves `x.weight` as `_orig_mod.x.weight`.
    """
    file = read_header(path)
    plain = {name: WRAPPER.sub("", name) for name in file.tensors}
    if len(set(plain.values())) < len(plain):
        return file  # the tensor is there with and without
    return replace(
        file,
        tensors={plain[name]: info for name, info in file.tensors.items()},
        stored_names={new: name for name, new in plain.items() if new != name},
    )


def _file_size(path: Path) -> int:
    if (path / "modular_model_index.json").is_file():
        raise CheckpointError(
            f"{path} is a folder of a modular pipeline of diffusers, which is not read. Give the "
            "model as one .safetensors file, as hosts take it, or as a folder with "
            "model_index.json."
        )
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; a .safetensors file was expected. Name the file inside it "
            "(a diffusers folder must contain model_index.json)."
        )
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no file {path}. Check the spelling of the path."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}. Check the path.") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Download or copy it again.")
    return size


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if head[8:9] == b"{":
        return  # the bytes before it are a length and may look like anything
    pickled = head[:2] == b"\x80\x02" or head[:4] == b"PK\x03\x04"
    if pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise UnsupportedModelError(f"{path.name} is a pickle checkpoint. {CONVERT_HINT}")
    if head[:4] == b"GGUF":
        raise UnsupportedModelError(
            f"{path.name} is a GGUF file. Quantised GGUF weights cannot be trained through; use "
            "the original fp16, bf16 or fp8 .safetensors checkpoint."
        )
    if head[:7] == b"version":
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the model itself. Fetch it with `git lfs pull`."
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path.name} is a web page, not a model: the download failed (often for want of a "
            "login). Download it again."
        )


def _header_length(path: Path, head: bytes, size: int) -> int:
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 10 else 0
    if head[8:9] != b"{" or not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path.name} is not a safetensors file (no header found). Expected a .safetensors "
            "checkpoint in the A1111/ComfyUI layout, or a diffusers folder."
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path.name} is cut short: its header alone takes {8 + length} bytes, the file has "
            f"{size}. Download or copy it again."
        )
    return length


def _parse(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} is damaged: its safetensors header is not valid JSON. Download it again."
        ) from error
    if not isinstance(header, dict):
        _damaged(path, "the header is not a table of tensors")
    return header


def _metadata(path: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        _damaged(path, "__metadata__ is not a table")
    if not all(isinstance(value, str) for value in metadata.values()):
        _damaged(path, "__metadata__ holds something that is not text")
    return metadata


def _check_text(path: Path, texts: Iterable[str]) -> None:
    """Refuse half of a character, which JSON can hold and safetensors' own reader refuses."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        _damaged(path, f"its header holds half a character ({error.object!r})")


def _tensors(path: Path, header: dict[str, object]) -> Iterator[tuple[str, TensorInfo]]:
    for name, entry in header.items():
        yield name, _tensor_info(path, name, entry)


def _check_places(path: Path, tensors: dict[str, TensorInfo], data_size: int) -> None:
    """Refuse what safetensors' own reader refuses: bytes of no tensor, or of two."""
    end_of_data = max((info.end for info in tensors.values()), default=0)
    if end_of_data > data_size:
        raise CheckpointError(
            f"{path.name} is cut short: the header promises {end_of_data} bytes of tensors, the "
            f"file holds {data_size}. Download or copy it again."
        )
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start < end:
            _damaged(path, f"tensor {name!r} shares bytes with another tensor")
        if info.start > end:
            _damaged(path, f"{info.start - end} bytes before tensor {name!r} belong to no tensor")
        end = info.end
    if end < data_size:
        _damaged(path, f"{data_size - end} bytes at its end belong to no tensor")


def _tensor_info(path: Path, name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict):
        _damaged(path, f"no table for tensor {name!r}")
    dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets):
        _damaged(path, f"bad dtype, shape or offsets for tensor {name!r}")
    if len(offsets) != 2 or len(shape) > MAX_RANK or offsets[0] > offsets[1]:
        _damaged(path, f"bad shape or offsets for tensor {name!r}")
    if dtype not in DTYPE_BITS:
        raise UnsupportedModelError(
            f"{path.name}: tensor {name!r} is stored as {dtype!r}, which is not known here. "
            "Supported: F32, F16, BF16, F8_E4M3, F8_E5M2."
        )
    if math.prod(max(size, 1) for size in shape) >= 2**63:
        _damaged(path, f"bad shape for tensor {name!r}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if -(-bits // 8) != offsets[1] - offsets[0]:
        _damaged(path, f"tensor {name!r} of shape {tuple(shape)} does not fill its bytes")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: object) -> TypeGuard[list[int]]:
    """Whether `value` is a list of non-negative integers."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _damaged(path: Path, what: str) -> NoReturn:
    raise CheckpointError(
        f"{path.name} is damaged: {what}. Download it again, or save it again from your host."
    )
