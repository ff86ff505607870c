"""Files are whole or absent, whatever letters and however many their names have."""

from __future__ import annotations

import pytest
from dpdmd_studio.core.errors import OutputError
from dpdmd_studio.core.files.atomic_write import check_output, try_name, write_bytes, write_text

ENDING = ".safetensors"
NAMES = [
    "x" * 229 + ENDING,  # 241 bytes: with its temporary name it was too long
    "x" * 243 + ENDING,
    "日" * 81 + ENDING,
    "e\u0301" * 80 + ENDING,
    "😀" * 60 + ENDING,
    "a\udcffb" + ENDING,
    "-~%s {}[]'" + ENDING,
    "a",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_the_drive_takes_is_written(tmp_path, name):
    path = tmp_path / name
    check_output(path, overwrite=False)
    try_name(path)
    assert not list(tmp_path.iterdir())
    write_bytes(path, b"one")
    try_name(path)
    write_bytes(path, b"two")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"two"]


@pytest.mark.parametrize("name", ["x" * 244 + ENDING, "日" * 82 + ENDING])
def test_a_name_too_long_is_said_before_and_when_it_is_written(tmp_path, name):
    path = tmp_path / name
    check_output(path, overwrite=True)
    for attempt in (try_name, lambda path: write_bytes(path, b"")):
        with pytest.raises(OutputError, match=r"its name of 25\d bytes"):
            attempt(path)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_said(tmp_path):
    for attempt in (try_name, lambda path: check_output(path, overwrite=False)):
        with pytest.raises(OutputError, match="does not exist; create it"):
            attempt(tmp_path / "none" / "a.safetensors")


def test_half_a_character_becomes_a_question_mark(tmp_path):
    write_text(tmp_path / "a.txt", "a \udcff b")
    assert (tmp_path / "a.txt").read_bytes() == b"a ? b"
