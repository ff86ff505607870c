"""`check` of a tiny random Anima: every part runs, its verdict is right, what is missing is named.

Random weights draw noise, so the teacher's picture is red, as it has to be.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import checkpoints
import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.cli import main
from dpdmd_studio.trainer.commands import check_parts as command
from dpdmd_studio.trainer.commands.check import CheckRequest, CheckResult, check
from tiny_runs import TINY

pytestmark = pytest.mark.usefixtures("home")
ENCODER = "qwen_3_06b_base.safetensors"
VERDICTS = {
    "Teacher's picture": "red",
    "An untrained LoRA changes nothing": "green",
    "Number format": "green",
    "Memory": "not measured",  # its size is not the published one
    "Time": "green",
    "Already a few-step model?": "not measured",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.anima_folder(tmp_path_factory.mktemp("anima"))


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """One image a prompt, and no more steps than tell something."""
    monkeypatch.setattr(command, "SEEDS", (1,))
    monkeypatch.setattr(command, "PLAIN_STEPS", 8)


def checked(path: Path, **files: Path) -> CheckResult:
    config = DistillConfig.from_dict(TINY | {"batch_size": 1, "resolution": "64x48"})
    named = {name: str(file) for name, file in files.items()}
    return check(CheckRequest(model=ModelFiles(checkpoint=str(path), **named), config=config))


@pytest.mark.parametrize(
    ("name", "files", "map_said"),
    [
        ("whole", {}, False),
        ("anima", {"qwen": ENCODER, "vae": "vae.safetensors"}, False),
        ("anima", {"qwen": ENCODER}, True),
    ],
)
def test_every_part_runs_and_its_verdict_is_right(folder, name, files, map_said, tmp_path):
    named = {kind: folder / file for kind, file in files.items()}
    # nothing lies beside it
    path = Path(shutil.copy2(folder / f"{name}.safetensors", tmp_path))
    result = checked(path, **named)
    assert not [part for part, found in result.figures.items() if "error" in found]
    assert {line.name: line.verdict for line in result.lines} == VERDICTS
    assert result.figures["adapters"]["largest"] == 0
    picture = result.lines[0]
    assert ("no VAE was given" in picture.found) == map_said
    # nothing is advised that Anima does not have
    assert "(--shift)" in picture.advice and "--prediction" not in picture.advice
    assert "Model: Anima" in result.table and str(tmp_path) not in result.table


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "anima.safetensors has no Qwen3 text encoder. Anima needs it: give --qwen FILE"),
        ({"qwen": "gone.safetensors"}, "There is no file"),
        ({"qwen": "vae.safetensors"}, "vae.safetensors does not hold a Qwen3 text encoder"),
        ({"qwen": ENCODER, "vae": ENCODER}, f"{ENCODER} holds no VAE decoder (--vae)"),
        ({"qwen": ENCODER, "vae": "gone.safetensors"}, "There is no file"),
    ],
)
def test_what_is_missing_or_no_such_part_is_one_clear_line(folder, tmp_path, files, said, capsys):
    path = tmp_path / "anima.safetensors"  # nothing lies beside it
    path.write_bytes((folder / "anima.safetensors").read_bytes())
    words = [f"--{kind}={folder / file}" for kind, file in files.items()]
    assert main(["check", str(path), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
