"""Every hash equals its definition, recomputed here from the bytes of real safetensors files."""

import hashlib
import struct

import pytest
import torch
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.core.files import hashes
from safetensors.torch import save, save_file


def body_of(data):
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {name: torch.randn(300, 1000) for name in ("b", "a")}
    save_file(tensors, path, {"ss_note": "x"})
    return path, tensors


def test_hashes_equal_their_definitions(model):
    path, _ = model
    data = path.read_bytes()
    found = hashes.file_hashes(path)
    assert found.sha256 == hashlib.sha256(data).hexdigest() == hashes.file_sha256(path)
    assert found.autov1 == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert found.autov2 == hashlib.sha256(data).hexdigest()[:10]
    assert found.tensors == hashlib.sha256(body_of(data)).hexdigest()
    assert found.autov3 == found.tensors[:12]
    assert hashes.legacy_hash(data) == found.autov1
    assert hashes.tensor_bytes_hash(body_of(data)) == found.tensors
    assert hashes.modelspec_hash(found.tensors) == "0x" + found.tensors


def test_autov3_ignores_metadata_and_order_but_not_dtype(model, tmp_path):
    path, tensors = model
    other, half = tmp_path / "other.safetensors", tmp_path / "half.safetensors"
    save_file(dict(reversed(tensors.items())), other, {"longer": "metadata" * 100})
    save_file({name: tensor.half() for name, tensor in tensors.items()}, half)
    first = hashes.file_hashes(path)
    assert hashes.file_hashes(other).autov3 == first.autov3
    assert hashes.file_hashes(other).autov1 != first.autov1
    assert hashes.file_hashes(half).autov3 != first.autov3


def test_a_small_file_has_the_autov1_of_nothing(tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}))
    assert hashes.file_hashes(path).autov1 == hashes.EMPTY_AUTOV1 == "e3b0c442"


@pytest.mark.parametrize(
    "data", [b"", b"x", b"PK\x03\x04" + bytes(50), b"\xff" * 8 + b"{" + bytes(9)]
)
def test_files_that_are_no_safetensors_have_no_autov3(tmp_path, data):
    path = tmp_path / "other.bin"
    path.write_bytes(data)
    found = hashes.file_hashes(path)
    assert found.autov3 == found.tensors == ""
    assert found.sha256 == hashlib.sha256(data).hexdigest()


def test_progress_ends_at_the_size_and_a_changed_file_is_hashed_again(model):
    path, _ = model
    seen = []
    before = hashes.file_sha256(path, lambda done, size: seen.append((done, size)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    count = len(seen)
    assert hashes.file_sha256(path, lambda done, size: seen.append((done, size))) == before
    assert len(seen) == count
    path.write_bytes(path.read_bytes() + b"more")
    assert hashes.file_sha256(path) != before


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        hashes.file_hashes(tmp_path / "none")
