"""What a repeated option does: prompts are all drawn, and no file is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpdmd_studio.cli import main

MODEL = Path(__file__).resolve().parents[2] / "trainer" / "assets" / "shapes-sd1.safetensors"
SAMPLE = ["sample", str(MODEL), "--device", "cpu", "--steps", "9"]


def test_every_prompt_is_drawn_and_the_last_number_counts(tmp_path, capsys):
    words = ["--prompt", "red circle", "--prompt", "blue star", "--steps", "1", "--seeds", "3"]
    assert main([*SAMPLE, *words, "--output", str(tmp_path)]) == 0
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == ["001-00000003.png", "002-00000003.png"]


def test_a_second_few_step_lora_is_refused(tmp_path, capsys):
    words = ["--prompt", "a", "--lora", "1", "--lora", "2", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*SAMPLE, *words])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("argument --lora: given twice, as 1 and as 2; expected once")
