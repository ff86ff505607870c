"""`check` of a tiny random Anima and Z-Image, whose parts are files of their own.

Every part runs, its verdict is right, what is missing is named. Random weights draw noise, so the
teacher's picture is red, as it has to be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Kind:
    """A family's tiny model: what makes it, and what its files are called without their ending."""

    make: Callable[[Path], Path]
    label: str
    denoiser: str
    encoder: str
    vae: str


KINDS = {
    "anima": Kind(checkpoints.anima_folder, "Anima", "anima", "qwen_3_06b_base", "vae"),
    "zimage": Kind(checkpoints.zimage_folder, "Z-Image", "z_image", "qwen_3_4b", "ae"),
}
VERDICTS = {
    "Teacher's picture": "red",
    "An untrained LoRA changes nothing": "green",
    "Number format": "green",
    "Memory": "not measured",  # its size is not the published one
    "Time": "green",
    "Already a few-step model?": "not measured",
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> tuple[Kind, Path]:
    """(what it is, the folder of its files)."""
    kind = KINDS[request.param]
    return kind, kind.make(tmp_path_factory.mktemp(request.param))


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
    ("whole", "given", "map_said"),
    [(True, (), False), (False, ("encoder", "vae"), False), (False, ("encoder",), True)],
)
def test_every_part_runs_and_its_verdict_is_right(model, whole, given, map_said, tmp_path):
    kind, folder = model
    files = {"qwen": kind.encoder} if "encoder" in given else {}
    files |= {"vae": kind.vae} if "vae" in given else {}
    named = {name: folder / f"{file}.safetensors" for name, file in files.items()}
    # nothing lies beside it
    name = "whole" if whole else kind.denoiser
    path = Path(shutil.copy2(folder / f"{name}.safetensors", tmp_path))
    result = checked(path, **named)
    assert not [part for part, found in result.figures.items() if "error" in found]
    assert {line.name: line.verdict for line in result.lines} == VERDICTS
    assert result.figures["adapters"]["largest"] == 0
    picture = result.lines[0]
    assert ("no VAE was given" in picture.found) == map_said
    # nothing is advised that the family does not have
    assert "(--shift)" in picture.advice and "--prediction" not in picture.advice
    assert f"Model: {kind.label}" in result.table and str(tmp_path) not in result.table


@pytest.mark.parametrize(
    ("qwen", "vae", "said"),
    [
        ("", "", "has no Qwen3 text encoder. {label} needs it: give --qwen FILE"),
        ("gone", "", "There is no file"),
        ("{vae}", "", "{vae}.safetensors does not hold a Qwen3 text encoder"),
        ("{encoder}", "{encoder}", "{encoder}.safetensors holds no VAE decoder (--vae)"),
        ("{encoder}", "gone", "There is no file"),
    ],
)
def test_what_is_missing_or_no_such_part_is_one_clear_line(
    model, tmp_path, qwen, vae, said, capsys
):
    kind, folder = model
    path = tmp_path / f"{kind.denoiser}.safetensors"  # nothing lies beside it
    path.write_bytes((folder / path.name).read_bytes())
    names = vars(kind)
    words = [
        f"--{option}={folder / name.format(**names)}.safetensors"
        for option, name in (("qwen", qwen), ("vae", vae))
        if name
    ]
    assert main(["check", str(path), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said.format(**names) in lines[0]
