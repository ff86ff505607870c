"""What the screens remember, whatever happened to the file meanwhile."""

from __future__ import annotations

import json
import os

import pytest
from dpdmd_studio.app.library import preferences
from dpdmd_studio.app.library.preferences import Preferences, load, remember, save
from dpdmd_studio.core.errors import OutputError, SettingsError


def test_what_was_saved_is_loaded(home):
    chosen = Preferences(
        folders=("/a", "/b ü"), output_folder="/o", distill={"steps": 5, "x": ["é"]}
    )
    save(chosen)
    assert load() == chosen


def test_without_a_file_there_are_defaults_and_nothing_is_made(home):
    assert load() == Preferences()
    assert not home.exists()


def test_remembering_one_thing_keeps_the_others(home):
    save(Preferences(folders=("/a",), output_folder="/o"))
    changed = remember(distill={"preset": "12gb"})
    assert changed == load() == Preferences(
        folders=("/a",), output_folder="/o", distill={"preset": "12gb"}
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"[]",
        b"[" * 100_000,
        b'{"version": 2, "folders": [], "output_folder": "", "distill": {}}',
        b'{"version": 1, "folders": "/a", "output_folder": "", "distill": {}}',
        b'{"version": 1, "folders": [3], "output_folder": "", "distill": {}}',
        b'{"version": 1, "folders": [], "output_folder": null, "distill": {}}',
        b'{"version": 1, "folders": [], "output_folder": "", "distill": []}',
        b'{"version": 1}',
    ],
)
def test_a_damaged_file_is_set_aside_and_said(home, content):
    home.mkdir()
    (home / "preferences.json").write_bytes(content)
    loaded = load()
    assert (loaded.folders, loaded.output_folder, dict(loaded.distill)) == ((), "", {})
    assert "preferences.damaged.json" in loaded.note and len(loaded.note) < 600
    assert (home / "preferences.damaged.json").read_bytes() == content
    assert load() == Preferences()  # said once


def test_a_file_far_too_large_is_not_read(home, monkeypatch):
    monkeypatch.setattr(preferences, "MAX_BYTES", 100)
    home.mkdir()
    (home / "preferences.json").write_text('{"version": 1}' + " " * 100)
    assert "more than" in load().note


def test_what_cannot_be_kept_is_refused_and_the_old_stays(home, monkeypatch):
    save(Preferences(output_folder="/o"))
    for values in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(SettingsError, match="cannot be saved"):
            save(Preferences(distill=values))
    monkeypatch.setattr(preferences, "MAX_BYTES", 1000)
    with pytest.raises(SettingsError, match="Name a prompts file"):
        save(Preferences(distill={"prompts": "x" * 2000}))
    assert load().output_folder == "/o"


def test_a_note_is_never_saved(home):
    save(Preferences(note="damaged"))
    assert "note" not in json.loads((home / "preferences.json").read_text())
    assert load().note == ""


def test_a_data_folder_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPDMD_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OutputError, match="data folder"):
        save(Preferences())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file rights that bind")
def test_a_file_without_rights_gives_defaults_with_a_note(home):
    save(Preferences(output_folder="/o"))
    (home / "preferences.json").chmod(0)
    assert load().output_folder == "" and "cannot be read" in load().note
