"""Sampling with a student of a styled teacher: what is missing is said, what is there counts."""

from __future__ import annotations

import json

import pytest
from dpdmd_studio.cli import main
from dpdmd_studio.core.files.hashes import file_hashes
from safetensors.torch import load_file, save_file
from style_loras import style
from tiny_runs import distil, new_run

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def distilled(files, tmp_path_factory):
    """A style, and a student of a teacher with it: without and with the style in it."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("distilled")
    patch.setenv("DPDMD_HOME", str(folder / "home"))
    item = style(folder / "my style.safetensors", files["sd1"], encoders=False)
    found = {"style": item.path}
    for name, include in (("apart", False), ("inside", True)):
        run = new_run(
            folder / name,
            files["sd1"],
            teacher_loras=[(item.path, 0.7)],
            include=include,
            steps=1,
        )
        found[name] = distil(run).lora
    patch.undo()
    return found


def sample(files, output, *options) -> int:
    command = ["sample", str(files["sd1"]), "--prompt", "a cat", "--seeds", "0"]
    command += ["--resolution", "32x32", "--output", str(output)]
    return main([*command, *map(str, options)])


def test_sampling_without_the_style_says_what_is_missing(files, distilled, tmp_path, capsys):
    lora, item = distilled["apart"], distilled["style"]
    assert sample(files, tmp_path / "a", "--lora", lora) == 0
    said = capsys.readouterr().err
    digest = file_hashes(item).sha256[:10]
    assert f"my style.safetensors (SHA256 {digest}...) merged at 0.7. It is missing here" in said
    assert sample(files, tmp_path / "b", "--lora", lora, "--with-lora", f"{item}:0.7") == 0
    said = capsys.readouterr().err
    assert "missing here" not in said and "Merged my style.safetensors at strength 0.7" in said
    assert sample(files, tmp_path / "c", "--lora", lora, "--with-lora", item) == 0
    assert "is on at 1; this LoRA was made for 0.7" in capsys.readouterr().err
    pictures = [(tmp_path / name / "001-00000000.png").read_bytes() for name in "abc"]
    assert len(set(pictures)) == 3
    assert b"my style" in pictures[1]


def test_a_file_with_other_metadata_or_name_is_the_same_style(files, distilled, tmp_path, capsys):
    copy = tmp_path / "renamed.safetensors"
    save_file(load_file(distilled["style"]), copy, {"note": "edited by a host"})
    options = ("--lora", distilled["apart"], "--with-lora", f"{copy}:0.7")
    assert sample(files, tmp_path / "a", *options) == 0
    assert "missing here" not in capsys.readouterr().err
    other = style(tmp_path / "my style.safetensors", files["sd1"], encoders=False, seed=8).path
    options = ("--lora", distilled["apart"], "--with-lora", f"{other}:0.7")
    assert sample(files, tmp_path / "b", *options) == 0
    assert "missing here" in capsys.readouterr().err  # the name alone does not count


def test_an_included_style_is_not_asked_for(files, distilled, tmp_path, capsys):
    assert sample(files, tmp_path / "a", "--lora", distilled["inside"]) == 0
    assert "my style" not in capsys.readouterr().err
    options = ("--lora", distilled["inside"], "--with-lora", f"{distilled['style']}:0.7")
    assert sample(files, tmp_path / "b", *options) == 0
    assert "contains my style.safetensors" in capsys.readouterr().err


def test_both_ways_draw_one_picture(files, distilled, tmp_path):
    import numpy as np
    from PIL import Image

    inside = ("--lora", distilled["inside"])
    apart = ("--lora", distilled["apart"], "--with-lora", f"{distilled['style']}:0.7")
    bare = ("--lora", distilled["apart"])
    drawn = []
    for number, options in enumerate((inside, apart, bare)):
        assert sample(files, tmp_path / str(number), *options) == 0
        with Image.open(tmp_path / str(number) / "001-00000000.png") as picture:
            drawn.append(np.asarray(picture, dtype=float))
    assert np.abs(drawn[0] - drawn[1]).mean() < 0.05 * np.abs(drawn[0] - drawn[2]).mean()


def test_the_styles_teacher_is_drawn_without_a_student(files, distilled, tmp_path):
    assert sample(files, tmp_path / "a", "--steps", "2", "--with-lora", distilled["style"]) == 0
    assert sample(files, tmp_path / "b", "--steps", "2") == 0
    one, two = ((tmp_path / n / "001-00000000.png").read_bytes() for n in "ab")
    assert one != two


def test_inspect_shows_the_merged_loras(distilled, capsys):
    assert main(["inspect", str(distilled["apart"])]) == 0
    shown = capsys.readouterr().out
    digest = file_hashes(distilled["style"]).sha256
    assert f"name: my style.safetensors, strength: 0.7, sha256: {digest}" in shown
    assert f"Use it together with my style.safetensors at 0.7 ({digest[:10]})." in shown
    assert main(["inspect", str(distilled["inside"])]) == 0
    assert "Contains my style.safetensors at 0.7; do not add it again." in capsys.readouterr().out


def test_compare_says_what_is_missing_and_styles_every_arm(files, distilled, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    command = ["compare", str(files["sd1"]), "--prompts", str(prompts), "--seeds", "0-1"]
    command += ["--resolution", "32x32"]
    command += ["--no-rival", "--teacher-steps", "2", "--lora", str(distilled["apart"])]
    assert main([*command, "--output", str(tmp_path / "a")]) == 0
    assert "student.safetensors: This LoRA was made for a checkpoint with my style" in (
        capsys.readouterr().err
    )
    together = ["--with-lora", f"{distilled['style']}:0.7"]
    assert main([*command, *together, "--output", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert "missing here" not in said and "Merged my style.safetensors at strength 0.7" in said
    teachers = [
        json.loads((tmp_path / name / "report.json").read_text())["arms"][0]["measures"]
        for name in "ab"
    ]
    assert teachers[0]["sample_diversity"] != teachers[1]["sample_diversity"]
