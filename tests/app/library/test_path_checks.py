"""Paths that somebody typed: home folders, lengths and letters, by the rules of both systems."""

from __future__ import annotations

import itertools
import ntpath
import os
import posixpath
from pathlib import Path

import pytest
from dpdmd_studio.app.library.home import home, new_run_folder, numbered
from dpdmd_studio.app.library.path_checks import check_name, lora_file, typed_path
from dpdmd_studio.core.errors import SettingsError

LONGEST = "x" * (255 - len(".safetensors"))
CJK = "日" * 81


@pytest.mark.parametrize("paths", [posixpath, ntpath])
def test_a_tilde_is_the_home_folder_and_elsewhere_a_letter(paths, monkeypatch):
    own = "C:\\me" if paths is ntpath else "/me"
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, own)
    monkeypatch.setenv("USERNAME", "me")
    assert typed_path("~", paths) == own
    assert typed_path("~/a/b.safetensors", paths) == own + "/a/b.safetensors"
    for plain in ("a~b", "./~a", "model~1.safetensors", ""):
        assert typed_path(plain, paths) == plain
    if paths is posixpath:
        for name in ("~model.safetensors", "~nobody-of-that-name/a", "~\udcff"):
            assert typed_path(name, paths) == name
    else:
        assert typed_path("~\\a", paths) == "C:\\me\\a"


@pytest.mark.parametrize("text", ["~", "~/a"])
@pytest.mark.parametrize("value", ["", None])
def test_without_a_home_folder_a_tilde_is_refused(text, value, monkeypatch):
    monkeypatch.setattr(posixpath, "expanduser", lambda path: path)
    if value is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", value)
    with pytest.raises(SettingsError, match="no home folder"):
        typed_path(text, posixpath)
    for name in ("DPDMD_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    if os.path is posixpath:
        with pytest.raises(SettingsError, match="Set the environment variable DPDMD_HOME"):
            home()


@pytest.mark.parametrize("paths", [posixpath, ntpath])
def test_what_no_drive_has_is_refused(paths):
    assert typed_path(f"a/{LONGEST}.safetensors", paths)
    for name in ("y" * 256, "日" * 86, f"a/{'y' * 256}/b", "a/" * 3000, "a\0b", "~\ud83d"):
        with pytest.raises(SettingsError, match=r"bytes|half a character"):
            typed_path(name, paths)


@pytest.mark.parametrize("name", ["a?b", "a<b", 'a"b', "a*b", "a|b", "con.safetensors", "a:b"])
def test_letters_and_names_that_windows_lacks_are_refused_there_alone(name):
    check_name(f"models/{name}", posixpath)
    with pytest.raises(SettingsError):
        check_name(f"models/{name}", ntpath)


def test_a_lora_may_have_a_long_name_but_not_one_that_no_drive_takes(tmp_path):
    assert lora_file(tmp_path, CJK).name == f"{CJK}.safetensors"
    with pytest.raises(SettingsError, match="has 312 bytes with its ending"):
        lora_file(tmp_path, CJK + "日" * 19)
    assert len(os.fsencode(new_run_folder("z" * 250).name)) < 150


def test_numbered_names_stay_as_short_as_names_may_be():
    for name in ("a", LONGEST, "日" * 81, "a" + "日" * 80):
        found = list(itertools.islice(numbered(name), 12))
        assert found[0] == name and len(set(found)) == 12 and found[11].endswith("-12")
        assert all(len(f"{stem}.safetensors".encode()) <= 255 for stem in found)
    assert list(itertools.islice(numbered("a"), 3)) == ["a", "a-2", "a-3"]
    assert Path(LONGEST).name == LONGEST
