"""What a repeated option does: prompts are all drawn, and no file is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpdmd_studio.cli import main
from PIL import Image

MODEL = Path(__file__).resolve().parents[2] / "trainer" / "assets" / "shapes-sd1.safetensors"
SAMPLE = ["sample", str(MODEL), "--device", "cpu", "--steps", "9"]


def test_every_prompt_is_drawn_and_the_last_number_counts(tmp_path, capsys):
    words = ["--prompt", "red circle", "--prompt", "blue star", "--steps", "1", "--seeds", "3"]
    assert main([*SAMPLE, *words, "--output", str(tmp_path)]) == 0
    pictures = sorted(tmp_path.iterdir())
    assert [path.name for path in pictures] == ["001-00000003.png", "002-00000003.png"]
    said = [Image.open(path).info["parameters"] for path in pictures]
    assert said[0].startswith("red circle\n") and said[1].startswith("blue star\n")
    assert all("Steps: 1," in text for text in said)


def test_a_second_few_step_lora_is_refused(tmp_path, capsys):
    words = ["--prompt", "a", "--lora", "1", "--lora", "2", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*SAMPLE, *words])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("argument --lora: given twice, as 1 and as 2; expected once")
