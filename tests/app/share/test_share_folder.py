"""Where a package goes: nothing is lost on the way, and no foreign file is touched."""

from __future__ import annotations

import errno
import json
import socket
import zipfile

import pytest
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.app.share import folder as folder_module
from dpdmd_studio.app.share.folder import building, package_files
from dpdmd_studio.core.errors import OutputError, RunError


def build(output, texts, *, overwrite=False, name="few"):
    with building(output, name, [*texts, "package.json"], overwrite) as folder:
        for file, text in texts.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(text.encode())


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {f.relative_to(folder).as_posix(): f.read_text() for f in files}


def test_an_empty_folder_is_filled_and_its_parents_are_made(tmp_path):
    build(tmp_path / "deep" / "out", {"a.txt": "1"})
    (tmp_path / "empty").mkdir()
    build(tmp_path / "empty", {"pictures/a.txt": "2"})
    assert contents(tmp_path / "deep" / "out")["a.txt"] == "1"
    assert contents(tmp_path / "empty")["pictures/a.txt"] == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "empty.zip"]


def test_a_package_is_replaced_only_if_asked_and_then_without_remains(tmp_path):
    output = tmp_path / "out"
    build(output, {"a.txt": "1", "old.txt": "1", "changed.txt": "1"})
    (output / "mine.txt").write_text("mine")
    (output / "changed.txt").write_text("mine, too")
    before = contents(output), output.with_name("out.zip").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        build(output, {"a.txt": "2"})
    assert (contents(output), output.with_name("out.zip").read_bytes()) == before
    build(output, {"a.txt": "2", "new.txt": "2"}, overwrite=True)
    found = contents(output)
    found.pop("package.json")
    assert found == {"a.txt": "2", "new.txt": "2", "mine.txt": "mine", "changed.txt": "mine, too"}
    with zipfile.ZipFile(output.with_name("out.zip")) as archive:
        assert sorted(archive.namelist()) == ["few/a.txt", "few/new.txt", "few/package.json"]


def test_a_failure_leaves_the_earlier_package_as_it_was(tmp_path):
    output = tmp_path / "out"
    build(output, {"a.txt": "1"})
    before = contents(output), output.with_name("out.zip").read_bytes()
    with pytest.raises(AttributeError):
        build(output, {"new.txt": "2", "a.txt": 3}, overwrite=True)
    assert (contents(output), output.with_name("out.zip").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.zip"]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    output = tmp_path / "out"
    build(output, {"a.txt": "1"})
    before = contents(output), output.with_name("out.zip").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "_write_zip", full)
    with pytest.raises(OutputError, match="the disk is full"):
        build(output, {"a.txt": "2"}, overwrite=True)
    assert (contents(output), output.with_name("out.zip").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.zip"]


def test_foreign_files_are_refused_whatever_is_asked(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.txt").write_text("foreign")
    with pytest.raises(OutputError, match="not part of an earlier package"):
        build(output, {"a.txt": "1"}, overwrite=True)
    other = tmp_path / "other"
    other.with_name("other.zip").write_bytes(b"foreign")
    with pytest.raises(OutputError, match="not the zip of an earlier package"):
        build(other, {"a.txt": "1"}, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        build(tmp_path / "file", {"a.txt": "1"}, overwrite=True)
    part = tmp_path / "third.part"
    part.mkdir()
    (part / "b.txt").write_text("foreign")
    with pytest.raises(OutputError, match="in the way"):
        build(tmp_path / "third", {"a.txt": "1"})
    assert (part / "b.txt").read_text() == (output / "a.txt").read_text() == "foreign"


def test_a_name_too_long_for_its_zip_is_said(tmp_path):
    build(tmp_path / ("x" * 246), {"a.txt": "1"})
    for name in ("x" * 247, "x" * 255, "日" * 85):
        with pytest.raises(OutputError, match="its zip is named after it"):
            build(tmp_path / name, {"a.txt": "1"})


def test_a_manifest_from_elsewhere_cannot_name_files_outside(tmp_path):
    output = tmp_path / "out"
    build(output, {"a.txt": "1"})
    outside = tmp_path / "precious.txt"
    outside.write_text("1")
    sha256 = json.loads((output / "package.json").read_text())["files"]["a.txt"]
    (output / "link").symlink_to(tmp_path)
    names = [
        "../precious.txt",
        str(outside),
        "link/precious.txt",
        "C:\\x",
        "a/../../precious.txt",
        "a\0b",
    ]
    manifest = {"version": 1, "files": {"a.txt": sha256, **dict.fromkeys(names, sha256)}}
    (output / "package.json").write_text(json.dumps(manifest))
    build(output, {"b.txt": "2"}, overwrite=True)
    assert outside.read_text() == "1"
    assert not (output / "a.txt").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "files": 3}', "[" * 10_000])
def test_a_damaged_manifest_owns_nothing(tmp_path, text):
    output = tmp_path / "out"
    build(output, {"a.txt": "1"})
    (output / "package.json").write_text(text)
    with pytest.raises(OutputError, match="not part of an earlier package"):
        build(output, {"a.txt": "2"}, overwrite=True)


def test_what_a_killed_attempt_left_is_used_again_but_not_a_living_one_s(tmp_path):
    part = tmp_path / "out.part"
    part.mkdir()
    stale = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": 0}
    (part / "lock.json").write_text(json.dumps(stale))
    (part / "half.txt").write_text("half")
    build(tmp_path / "out", {"a.txt": "1"})
    assert set(contents(tmp_path / "out")) == {"a.txt", "package.json"}
    part = tmp_path / "next.part"
    part.mkdir()
    with owned(part / "lock.json"):
        (part / "half.txt").write_text("half")
        with pytest.raises(RunError, match="in use by process"):
            build(tmp_path / "next", {"a.txt": "1"})
        assert (part / "half.txt").exists()


def test_the_planned_files_are_all_relative_and_different():
    files = package_files("few", 8)
    assert len(set(files)) == len(files) == 8 + 11
    assert not any(file.startswith("/") or ".." in file for file in files)
