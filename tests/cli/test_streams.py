"""No command ends in a traceback for a stream that is closed, missing or full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dpdmd_studio.cli import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "trainer" / "assets" / "shapes-sd1.safetensors"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell's redirections")


def told(redirection: str, file: object = MODEL) -> tuple[int, str]:
    """(exit code, everything that could be read) of `inspect` with these redirections."""
    script = f'"$0" "$1" inspect "$2" {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, str(ROOT), str(file)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("<&-", 0), ("| true", 0), ("2>&1 | true", 0)],
)
def test_closed_streams_cost_nothing(redirection, code):
    found, said = told(redirection)
    assert found == code and "Traceback" not in said and "Exception ignored" not in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_result_that_cannot_be_written_is_said():
    code, said = told(">/dev/full")
    assert code == 1 and "The result could not be shown" in said and "Traceback" not in said


def test_a_mistake_without_streams_is_a_mistake():
    assert told(">&- 2>&-", "nowhere.safetensors") == (2, "")


def test_streams_that_python_lacks_are_made(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["inspect", str(MODEL)]) == 0
    assert main(["inspect", "nowhere"]) == 2


@pytest.mark.parametrize("option", ["--prompt", "--negative"])
def test_bytes_that_are_no_text_are_named(option, tmp_path, capsys):
    command = ["sample", str(MODEL), "--output", str(tmp_path), "--prompt", "a", option, "a\udcff"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {option} holds bytes that are no text")


@pytest.mark.parametrize("command", ["inspect", "estimate"])
@pytest.mark.parametrize("path", ["x" * 300, "~/nothing", "~nobody-here/x", "a\udcff", "日" * 90])
def test_odd_paths_end_in_one_sentence(command, path, capsys):
    assert main([command, path]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [["--steps", "9" * 400], ["--clip-skip", "-" + "9" * 400], ["--guidance-scale", "1e999"],
     ["--resolution", "9" * 5000], ["--resolution", "1x"], ["--batch-size", "9" * 30]],
)  # fmt: skip
def test_odd_numbers_end_in_one_sentence_before_anything_is_made(options, tmp_path, capsys):
    command = ["sample", str(MODEL), "--prompt", "a", "--output", str(tmp_path / "out"), *options]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 300
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", ["9" * 5000, "0-" + "9" * 5000, "5-" * 3000, "0-9999," * 100])
def test_odd_seeds_end_in_one_sentence(seeds, tmp_path, capsys):
    command = ["sample", str(MODEL), "--prompt", "a", "--output", str(tmp_path), "--seeds", seeds]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: seeds ")
