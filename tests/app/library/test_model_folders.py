"""Where models are looked for, what is listed, and that no path leaves the folders."""

from __future__ import annotations

import json
import ntpath
import os
import struct
from pathlib import Path

import pytest
from dpdmd_studio.app.library import model_folders
from dpdmd_studio.app.library.model_folders import (
    contained,
    default_folders,
    list_models,
    size_text,
)
from dpdmd_studio.app.library.path_checks import check_name, is_inside
from dpdmd_studio.core.errors import CheckpointError, SettingsError


def file_of(path: Path, *names: str) -> Path:
    """A safetensors file with empty tensors of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps(dict.fromkeys(names, entry)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def checkpoint(path: Path) -> Path:
    return file_of(path, "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x")


def lora(path: Path) -> Path:
    return file_of(path, "lora_unet_input_blocks_1.lora_down.weight", "lora_unet_x.alpha")


def link(path: Path, target: Path) -> Path:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("links are not allowed here")
    return path


@pytest.mark.parametrize(
    ("place", "host", "models"),
    [
        ("ComfyUI/custom_nodes/dpdmd", "ComfyUI", ("checkpoints", "loras")),
        ("webui/extensions/dpdmd", "webui", ("Stable-diffusion", "Lora")),
        ("dpdmd", "ComfyUI", ("checkpoints", "loras")),
        ("dpdmd", "stable-diffusion-webui-forge", ("Stable-diffusion", "Lora")),
        ("dpdmd", "ComfyUI_windows_portable/ComfyUI", ("checkpoints",)),
        ("dpdmd", "webui_forge_cu121_torch231/webui", ("Stable-diffusion",)),
    ],
)
def test_a_host_around_or_beside_the_checkout_is_found(tmp_path, place, host, models):
    own = tmp_path / place
    own.mkdir(parents=True)
    expected = [tmp_path / host / "models" / name for name in models]
    for folder in expected:
        folder.mkdir(parents=True)
    (tmp_path / "photos" / "models" / "checkpoints").mkdir(parents=True)
    assert default_folders(own) == expected


def test_a_checkout_linked_into_a_host_finds_it(tmp_path):
    own, nodes = tmp_path / "code" / "dpdmd", tmp_path / "ComfyUI" / "custom_nodes"
    own.mkdir(parents=True)
    nodes.mkdir(parents=True)
    (tmp_path / "ComfyUI" / "models" / "loras").mkdir(parents=True)
    assert default_folders(link(nodes / "dpdmd", own)) == [
        tmp_path / "ComfyUI" / "models" / "loras"
    ]


def test_no_host_gives_no_folders(tmp_path):
    (tmp_path / "dpdmd").mkdir()
    assert default_folders(tmp_path / "dpdmd") == []


def test_checkpoints_and_loras_are_told_apart_by_their_tensors(tmp_path):
    one = checkpoint(tmp_path / "b lora.safetensors")
    two = lora(tmp_path / "sub" / "a model.safetensors")
    file_of(tmp_path / "vae.safetensors", "decoder.conv_in.weight")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / ".hidden.safetensors").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    checkpoint(tmp_path / ".git" / "c.safetensors")
    found = list_models([tmp_path], "checkpoint")
    assert [(m.path, m.label, m.bytes) for m in found] == [
        (one, f"b lora.safetensors ({one.stat().st_size} bytes)", one.stat().st_size)
    ]
    assert [(m.path, m.label) for m in list_models([tmp_path], "lora")] == [
        (two, f"sub/a model.safetensors ({two.stat().st_size} bytes)")
    ]


def test_a_diffusers_folder_is_one_checkpoint(tmp_path):
    folder = tmp_path / "model"
    inner = checkpoint(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text("{}")
    (found,) = list_models([tmp_path], "checkpoint")
    assert (found.path, found.bytes) == (folder, inner.stat().st_size)
    assert contained(str(folder), [tmp_path]) == folder


def test_a_damaged_file_is_listed_so_that_its_fault_can_be_told(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    assert len(list_models([tmp_path], "checkpoint")) == len(list_models([tmp_path], "lora")) == 1


def test_a_file_that_changed_its_kind_is_looked_at_again(tmp_path):
    path = checkpoint(tmp_path / "a.safetensors")
    assert len(list_models([tmp_path], "checkpoint")) == 1
    lora(path)
    os.utime(path, ns=(1, 1))
    assert list_models([tmp_path], "checkpoint") == []


def test_two_files_of_one_name_have_two_labels_and_one_folder_counts_once(tmp_path):
    one, two = (
        checkpoint(tmp_path / "x" / "a.safetensors"),
        checkpoint(tmp_path / "y" / "a.safetensors"),
    )
    found = list_models([one.parent, two.parent, one.parent, tmp_path / "none"], "checkpoint")
    assert [m.path for m in found] == [one, two]
    assert str(one.parent) in found[0].label and found[0].label != found[1].label


def test_links_are_listed_only_where_they_stay_inside(tmp_path):
    inside, outside = tmp_path / "models", tmp_path / "elsewhere"
    real, secret = (
        checkpoint(inside / "real.safetensors"),
        checkpoint(outside / "secret.safetensors"),
    )
    link(inside / "leaves.safetensors", secret)
    link(inside / "folder", outside)
    assert [m.path for m in list_models([inside], "checkpoint")] == [real]
    for name in ("leaves.safetensors", "folder/secret.safetensors"):
        with pytest.raises(SettingsError, match="outside the folders"):
            contained(str(inside / name), [inside])


def test_a_folder_that_is_a_link_itself_may_be_named(tmp_path):
    real = checkpoint(tmp_path / "drive" / "a.safetensors")
    named = link(tmp_path / "models", real.parent)
    (found,) = list_models([named], "checkpoint")
    assert contained(str(found.path), [named]) == contained(str(real), [named]) == real


def test_listing_stops_at_a_tree_that_was_hardly_meant(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folders, "MAX_FOUND", 3)
    for number in range(6):
        checkpoint(tmp_path / f"{number}.safetensors")
    assert len(list_models([tmp_path], "checkpoint")) == 3


def test_a_path_inside_is_returned_whole(tmp_path):
    path = checkpoint(tmp_path / "sub" / "a b.safetensors")
    for text in (str(path), "sub/a b.safetensors", f"{tmp_path}/sub/../sub/a b.safetensors"):
        assert contained(text, [tmp_path / "none", tmp_path]) == path


def test_hostile_and_mistaken_paths_are_refused(tmp_path):
    inside = tmp_path / "models"
    checkpoint(inside / "a.safetensors")
    outside = checkpoint(tmp_path / "models-of-others" / "b.safetensors")
    (inside / "notes.txt").write_text("x")
    for text, word in (
        (str(outside), "outside"),
        (f"{inside}/../models-of-others/b.safetensors", "outside"),
        ("../models-of-others/b.safetensors", "outside"),
        ("/etc/passwd", "outside"),
        ("~/b.safetensors", "outside"),
        ("//server/share/b.safetensors", "outside"),
        (r"\\server\share\b.safetensors", "no file|outside"),
        (r"C:\models\b.safetensors", "no file|outside"),
        (str(inside), "outside"),
        ("", "No file was named"),
        ("   ", "No file was named"),
        ("a.safetensors\x00.txt", "control characters"),
        ("x" * 5000, "too long"),
        ("b.safetensors", "no file"),
        ("x" * 300 + ".safetensors", "no file"),
    ):
        with pytest.raises(SettingsError, match=word):
            contained(text, [inside])
    with pytest.raises(SettingsError, match="none so far"):
        contained("a.safetensors", [])
    with pytest.raises(CheckpointError, match=r"notes.txt is not a safetensors file"):
        contained("notes.txt", [inside])


def test_a_model_of_another_ending_is_taken_and_no_other_file_in_its_place(tmp_path):
    other = checkpoint(tmp_path / "a.safetensors").rename(tmp_path / "b.sft")
    assert contained("b.sft", [tmp_path]) == other
    for name, content, word in (
        ("c.ckpt", b"PK\x03\x04" + bytes(9), "pickle"),
        ("c.gguf", b"GGUF" + bytes(9), "GGUF"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=word):
            contained(name, [tmp_path])


def test_nothing_outside_is_even_looked_at(tmp_path, monkeypatch):
    looked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda p, **k: looked.append(str(p)) or real(p, **k))
    monkeypatch.setattr(os.path, "exists", lambda p: looked.append(str(p)) or False)
    with pytest.raises(SettingsError, match="outside"):
        contained("//server/share/x.safetensors", [tmp_path])
    assert set(looked) <= {str(tmp_path)}


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        (r"C:\Models\a.safetensors", True),
        (r"c:\models\SUB\a.safetensors", True),
        ("C:/Models/a.safetensors", True),
        (r"C:\Models\..\Models\a.safetensors", True),
        (r"C:\Models\..\Windows\a.safetensors", False),
        (r"C:\Models2\a.safetensors", False),
        (r"C:\Models", False),
        (r"D:\Models\a.safetensors", False),
        (r"C:Models\a.safetensors", False),
        (r"\Models\a.safetensors", False),
        (r"\\server\Models\a.safetensors", False),
        (r"\\?\C:\Models\a.safetensors", False),
        (r"\\.\C:\Models\a.safetensors", False),
        (r"\\?\UNC\server\share\a.safetensors", False),
    ],
)
def test_windows_paths_by_windows_rules(path, inside):
    assert is_inside(path, r"C:\Models", ntpath) is inside


@pytest.mark.parametrize(
    "path", ["NUL", r"C:\Models\con.safetensors", r"C:\m\COM1 .x", "lpt¹", r"C:\m\a.safetensors:s"]
)
def test_windows_devices_and_streams_are_refused_there(path):
    with pytest.raises(SettingsError, match=r"device of Windows|colon inside"):
        check_name(path, ntpath)
    check_name(r"C:\Models\concert.safetensors", ntpath)


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 bytes"), (7_401_062, "7.4 MB"), (6_940_000_000, "6.9 GB")]
)
def test_sizes_read_as_download_pages_show_them(size, text):
    assert size_text(size) == text
