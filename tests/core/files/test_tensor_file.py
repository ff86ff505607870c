"""Reading safetensors headers: exact on good files, one clear error on every bad one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from dpdmd_studio.core.errors import CheckpointError, UnsupportedModelError
from dpdmd_studio.core.files.tensor_file import (
    MAX_HEADER_BYTES,
    read_header,
    read_model_header,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_names_dtypes_shapes_and_bytes_are_those_of_the_file(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 4).half(),
        "b": torch.tensor(2.5),
        "c": torch.randn(5).bfloat16(),
        "d": torch.randn(2, 2).to(torch.float8_e4m3fn),
        "e": torch.arange(7),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"title": "t"})
    file = read_header(path)
    assert file.metadata == {"title": "t"}
    assert {k: (i.dtype, i.shape) for k, i in file.tensors.items()} == {
        "a.weight": ("F16", (3, 4)), "b": ("F32", ()), "c": ("BF16", (5,)),
        "d": ("F8_E4M3", (2, 2)), "e": ("I64", (7,)),
    }  # fmt: skip
    info, content = file.tensors["b"], path.read_bytes()
    stored = content[file.data_offset + info.start : file.data_offset + info.end]
    assert struct.unpack("<f", stored) == (2.5,)
    assert file.under("a.")["weight"].count == 12


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS = {
    "not json": (b"{" + b"x" * 20, "not valid JSON"),
    "deep json": (b"{" + b'"a":{' * 5000 + b"}" * 5001, "damaged"),
    "tensor without table": ({"a": 3}, "no table"),
    "negative size": ({"a": {**TENSOR, "shape": [-2]}}, "bad dtype"),
    "boolean size": ({"a": {**TENSOR, "shape": [True, 2]}}, "bad dtype"),
    "huge size": ({"a": {**TENSOR, "shape": [2**70]}}, "bad dtype"),
    "offsets reversed": ({"a": {**TENSOR, "data_offsets": [8, 0]}}, "bad shape or offsets"),
    "size and bytes disagree": ({"a": {**TENSOR, "shape": [3]}}, "does not fill its bytes"),
    "bytes before": ({"a": {**TENSOR, "shape": [1], "data_offsets": [4, 8]}}, "4 bytes before"),
    "bytes behind": ({"a": {**TENSOR, "shape": [1], "data_offsets": [0, 4]}}, "4 bytes at its end"),
    "no tensor": ({}, "8 bytes at its end"),
    "two names for one": ({"a": TENSOR, "b": TENSOR}, "shares bytes"),
    "nothing inside another": (
        {"a": TENSOR, "b": {**TENSOR, "shape": [0], "data_offsets": [4, 4]}},
        "shares bytes",
    ),
    "beyond all numbers": (
        {"a": TENSOR, "b": {**TENSOR, "shape": [2**62, 4, 0], "data_offsets": [8, 8]}},
        "bad shape",
    ),
    "half a character in a name": ({"a": TENSOR, "\ud800": {}}, "half a character"),
    "half a character in metadata": ({"__metadata__": {"a": "\udfff"}}, "half a character"),
    "another encoding": (json.dumps({"a": TENSOR}).encode("utf-16-le"), "not valid JSON"),
    "metadata not text": ({"__metadata__": {"a": 3}}, "not text"),
    "metadata not a table": ({"__metadata__": []}, "not a table"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_damaged_header_is_named_as_such(name, tmp_path):
    header, message = BAD_HEADERS[name]
    path = raw(tmp_path / "x.safetensors", header, b"\0" * 8)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass  # ours refuses no file that the library reads


def test_tensors_without_elements_may_lie_anywhere_between_others(tmp_path):
    nothing, some = torch.zeros(0, 3), torch.ones(2)
    path = tmp_path / "x.safetensors"
    save_file({"a": nothing, "b": some, "c": nothing.clone(), "d": some.clone()}, path)
    assert [info.count for info in read_header(path).tensors.values()].count(0) == 2
    save_file({"v_pred": nothing}, path)
    assert read_header(path).tensors["v_pred"].count == 0


def test_a_cut_file_says_how_many_bytes_are_missing(tmp_path):
    path = raw(tmp_path / "x.safetensors", {"a": TENSOR}, b"\0" * 3)
    with pytest.raises(CheckpointError, match=r"cut short.*8 bytes.*holds 3"):
        read_header(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cut short"):
        read_header(path)


def test_an_absurd_header_length_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(path)


def test_an_unknown_dtype_is_named(tmp_path):
    path = raw(tmp_path / "x.safetensors", {"a": {**TENSOR, "dtype": "Q4"}}, b"\0" * 8)
    with pytest.raises(UnsupportedModelError, match="'Q4'"):
        read_header(path)


OTHER_FORMATS = {
    "model.ckpt": (b"PK\x03\x04" + b"\0" * 40, UnsupportedModelError, "pickle.*Convert"),
    "old.pt": (b"\x80\x02}q\x00." + b"\0" * 40, UnsupportedModelError, "pickle.*Convert"),
    "renamed.safetensors": (b"PK\x03\x04" + b"\0" * 40, UnsupportedModelError, "pickle"),
    "model.bin": (b"\0" * 40, UnsupportedModelError, "pickle"),
    "model.gguf": (b"GGUF\x03\0\0\0" + b"\0" * 40, UnsupportedModelError, "GGUF"),
    "page.safetensors": (b"<!DOCTYPE html>" + b" " * 40, CheckpointError, "web page"),
    "lfs.safetensors": (b"version https://git-lfs", CheckpointError, "Git LFS"),
    "picture.safetensors": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, CheckpointError, "not a safetens"),
    "tiny.safetensors": (b"abc", CheckpointError, "not a safetensors"),
    "empty.safetensors": (b"", CheckpointError, "empty"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_are_recognised_and_refused(name, tmp_path):
    content, error, message = OTHER_FORMATS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_header(tmp_path / name)


def test_a_missing_file_and_a_folder_are_said_to_be_that(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)


@pytest.mark.parametrize("length", [0x3C, 0x0280, 0x3C3C])
def test_a_header_length_that_looks_like_another_format_is_still_a_length(length, tmp_path):
    text = json.dumps({"a": TENSOR}).encode().ljust(length)
    text = text if len(text) == length else b"{" + b"}".rjust(length - 1)
    assert len(text) == length and struct.pack("<Q", length)[:1] in b"<\x80"
    file = read_header(raw(tmp_path / "x.safetensors", text, b"\0" * 8 * (b"dtype" in text)))
    assert file.data_offset == 8 + length


@pytest.mark.parametrize(
    "stored",
    [
        "model.diffusion_model._orig_mod.out.2.weight",
        "_orig_mod.model.diffusion_model.out.2.weight",
        "module.model.diffusion_model.out._orig_mod.2.weight",
        "model.diffusion_model._fsdp_wrapped_module._checkpoint_wrapped_module.out.2.weight",
    ],
)
def test_what_wraps_a_module_is_no_part_of_its_tensors_names(stored, tmp_path):
    plain, path = "model.diffusion_model.out.2.weight", tmp_path / "x.safetensors"
    save_file({stored: torch.ones(2), "submodule.x": torch.ones(3)}, path)
    file = read_model_header(path)
    assert set(file.tensors) == {plain, "submodule.x"} and file.stored_names == {plain: stored}
    save_file({stored: torch.ones(2), plain: torch.ones(2)}, path)
    assert set(read_model_header(path).tensors) == {stored, plain}
