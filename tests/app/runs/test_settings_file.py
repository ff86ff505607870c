"""Settings files and the settings inside LoRAs: what travels, and what a stranger may not do."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
from dpdmd_studio.app.config import distill_config as config
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.settings_file import (
    MAX_BYTES,
    config_text,
    import_settings,
    read_settings,
    settings_of_lora,
)
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import CheckpointError, RunError, SettingsError
from dpdmd_studio.core.lora.metadata import SETTINGS_KEY, TrainingFacts, training_metadata

OTHER = DistillConfig(steps=77, student_lr=3e-4, teacher_negative="no\nblur", resolution="64x32")


def request(config: DistillConfig = OTHER) -> DistillRequest:
    return DistillRequest(
        model=ModelFiles(checkpoint="/home/me/secret/model.safetensors", vae="/home/me/vae"),
        config=config,
        output="/home/me/out.safetensors",
        teacher_loras=(TeacherLora(path="/home/me/style.safetensors"),),
    )


def text_of(config: object, **changes: object) -> str:
    facts = {
        "kind": "dpdmd.settings",
        "version": 1,
        "generator": "DP-DMD Studio 9",
        "config": config,
    }
    return json.dumps(facts | changes)


def lora(path: Path, metadata: object) -> Path:
    """A safetensors file without tensors but with this metadata."""
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_exported_settings_come_back_whole():
    assert import_settings(config_text(OTHER)) == OTHER


def test_an_export_names_no_path_and_no_device(tmp_path):
    asked = request(DistillConfig(device="cuda", steps=5))
    run = RunDirectory.create(tmp_path / "run", asked.to_dict(), ["a cat"])
    text = config_text(read_settings(run.path))
    assert "/home" not in text and "cuda" not in text and "secret" not in text
    assert json.loads(text)["config"]["steps"] == 5
    assert import_settings(text).device == "auto"


def test_a_setting_that_is_not_named_has_its_default(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("\ufeff" + text_of({"steps": 3}), encoding="utf-8")
    assert import_settings(path) == import_settings(str(path)) == DistillConfig(steps=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (text_of({"stepz": 3}), ["stepz", "DP-DMD Studio 9", "update"]),
        (text_of({f"x{n}": 1 for n in range(9)}), ["and 4 others"]),
        (text_of({"steps": 3}, version=2), ["format 2", "reads format 1"]),
        (text_of({"steps": 3}, version=True), ["format True"]),
        (text_of({"steps": 3}, kind="recipe"), ["not a settings file", "recipe"]),
        (text_of([1]), ["no table of settings"]),
        ('{"steps": 3}', ["not a settings file", "None"]),
        (text_of({"steps": "3"}), ["steps", "expected int"]),
        (text_of({"steps": True}), ["steps", "expected int"]),
        (text_of({"steps": 0}), ["steps is 0", "least allowed is 1"]),
        (text_of({"steps": {"a": 1}}), ["steps is a dict"]),
        (text_of({"steps": None}), ["steps is a NoneType"]),
        (text_of({"student_lr": 10**400}), ["student_lr is a huge whole number"]),
        (text_of({"dtype": "x" * 600}), ["dtype has 600 characters"]),
        (text_of({"teacher_negative": "\ud800"}), ["teacher_negative", "surrogate"]),
        ('{"kind": "dpdmd.settings", "kind": "x"}', ["given twice: kind"]),
        ('{"version": NaN}', ["NaN is not a number"]),
        ('{"version": ' + "9" * 6000 + "}", []),
        ('{"a":' * 5000 + "1" + "}" * 5000, []),  # deep enough for some Pythons, not for others
        ("{" + '"a":' + "[" * 120_000 + "]" * 120_000 + "}", ["nested deeper"]),
        (text_of({"steps": [[[[[[[[[[1]]]]]]]]]]}), ["steps is a list"]),
        ('{"a": "' + "x" * MAX_BYTES + '"}', [f"up to {MAX_BYTES:,}"]),
        ('{"kind": ', ["not valid JSON"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text, words):
    with pytest.raises(SettingsError) as caught:
        import_settings(text)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 500 and message.isprintable()


@pytest.mark.parametrize("asked", [False, True])
def test_a_setting_of_an_earlier_version_is_left_out_and_named_if_it_was_asked_for(asked, caplog):
    config._say.cache_clear()
    text = text_of({"steps": 3, "shard_base": asked})
    for _ in range(2):
        assert import_settings(text) == DistillConfig(steps=3)
    said = [record.message for record in caplog.records]
    assert len(said) == asked
    if asked:
        assert "shard_base no longer exists and is ignored" in said[0]
        assert "--base-weights int8 and --offload-base" in said[0]


def test_a_value_of_an_earlier_version_is_replaced_and_said(caplog):
    config._say.cache_clear()
    assert import_settings(text_of({"base_weights": "fp8"})) == DistillConfig(base_weights="int8")
    assert "base_weights fp8 no longer exists; int8 is taken" in caplog.text


def test_brackets_inside_a_text_are_no_nesting():
    negative = '[[[[[[[[[[{{{{{{{{"\\'
    assert import_settings(text_of({"teacher_negative": negative})).teacher_negative == negative


def test_a_name_full_of_html_and_controls_stays_one_printable_line():
    with pytest.raises(SettingsError) as caught:
        import_settings(text_of({"<script>\n\x1b[31m" + "x" * 500: 1}))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_compressed_files_are_never_unpacked(tmp_path):
    bomb = tmp_path / "settings.json"
    bomb.write_bytes(gzip.compress(b"0" * 5_000_000))
    zipped = tmp_path / "settings.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("settings.json", text_of({}))
    for path in (bomb, zipped):
        with pytest.raises(SettingsError, match="compressed"):
            import_settings(path)


def test_files_that_are_none_are_refused(tmp_path):
    large = tmp_path / "large.json"
    large.write_bytes(b"{" + b" " * MAX_BYTES)
    utf16 = tmp_path / "utf16.json"
    utf16.write_bytes(text_of({}).encode("utf-16"))
    for path, word in (
        (tmp_path / "absent.json", "no settings file"),
        (tmp_path, "no settings file"),
        (large, "more than"),
        (utf16, "not UTF-8"),
    ):
        with pytest.raises(SettingsError, match=word):
            import_settings(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(SettingsError, match="no settings file"):
        import_settings(tmp_path / "pipe.json")


def test_a_lora_gives_back_the_settings_it_was_made_with(tmp_path):
    facts = TrainingFacts(settings=OTHER.to_dict() | {"device": "cuda"})
    written = lora(tmp_path / "a.safetensors", training_metadata(facts))
    assert settings_of_lora(written) == OTHER


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "carries no settings"),
        ({SETTINGS_KEY: "x" * 10_000_000}, "10,000,000 bytes"),
        ({SETTINGS_KEY: "[" * 100_000}, "nested deeper"),
        ({SETTINGS_KEY: "[]"}, "not a table"),
        ({SETTINGS_KEY: '{"steps": [1]}'}, "steps is a list"),
        (
            {SETTINGS_KEY: '{"magic": 1}', "modelspec.implementation_version": "X 2"},
            "written by X 2",
        ),
    ],
)
def test_hostile_metadata_is_an_error_of_settings(tmp_path, metadata, words):
    with pytest.raises(SettingsError, match=words):
        settings_of_lora(lora(tmp_path / "a.safetensors", metadata))


@pytest.mark.parametrize("metadata", [{SETTINGS_KEY: {"steps": 1}}, [1], "x", {SETTINGS_KEY: 3}])
def test_metadata_that_is_no_text_is_a_damaged_file(tmp_path, metadata):
    with pytest.raises(CheckpointError, match="damaged"):
        settings_of_lora(lora(tmp_path / "a.safetensors", metadata))


def test_settings_are_read_from_file_lora_and_run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", request().to_dict(), ["a cat"])
    (tmp_path / "s.json").write_text(config_text(OTHER))
    packed = lora(tmp_path / "a.safetensors", {SETTINGS_KEY: json.dumps(OTHER.to_dict())})
    assert read_settings(run.path) == read_settings(tmp_path / "s.json") == OTHER
    assert read_settings(packed) == OTHER
    with pytest.raises(RunError, match="not a run"):
        read_settings(tmp_path)


def test_the_command_exports_what_the_run_was_asked_for(tmp_path, capsys):
    run = RunDirectory.create(tmp_path / "run", request().to_dict(), ["a cat"])
    assert main(["settings", "export", str(run.path)]) == 0
    assert import_settings(capsys.readouterr().out) == OTHER
    target = tmp_path / "out.json"
    assert main(["settings", "export", str(run.path), "--output", str(target)]) == 0
    assert import_settings(target) == OTHER
    assert main(["settings", "export", str(run.path), "--output", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    again = ["settings", "export", str(run.path), "--output", str(target), "--overwrite", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out) == {"settings": str(target)}
    assert main(["settings", "export", str(tmp_path / "none.safetensors")]) == 2


TEACHER = Path(__file__).parents[3] / "trainer" / "assets" / "shapes-sd1.safetensors"


def distill_command(folder: Path, *options: str) -> list[str]:
    (folder / "prompts.txt").write_text("a cat\n")
    return ["distill", str(TEACHER), "--prompts", str(folder / "prompts.txt"), "--queue",
            "--output", str(folder / "o.safetensors"), *options]  # fmt: skip


def test_options_given_by_hand_win_over_a_preset_and_that_over_a_file(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dpdmd_studio.cli.queue_distill",
        lambda arguments, request, prompts: asked.append(request.config) or 0,
    )
    (tmp_path / "s.json").write_text(
        text_of({"steps": 2, "micro_batch_size": 1, "student_rank": 5})
    )
    named = distill_command(tmp_path, "--settings", str(tmp_path / "s.json"))
    assert main([*named, "--preset", "12gb", "--steps", "1"]) == main(named) == 0
    found = [(c.steps, c.micro_batch_size, c.student_rank) for c in asked]
    assert found == [(1, 2, 5), (2, 1, 5)]


def test_a_broken_settings_file_stops_before_anything_is_made(tmp_path, home, capsys):
    (tmp_path / "s.json").write_text("{}")
    assert main(distill_command(tmp_path, "--settings", str(tmp_path / "s.json"))) == 2
    assert "not a settings file" in capsys.readouterr().err
    assert not home.exists()
