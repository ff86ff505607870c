"""The own code of A1111, Forge, reForge and Forge Neo reads packaged pictures back.

Needs WEBUI_DIR, FORGE_DIR, REFORGE_DIR or NEO_DIR; nothing of them is started.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import share_readers as readers
from share_packages import package, student

PROGRAM = Path(__file__).with_name("webui_infotext_program.py")
PROMPTS = [
    "a cat, (tall:1.2) house, [old], été 日本",
    "lens: 50mm, film: none, mood: calm",
    'quotes "a, b": c',
    "a \\(round\\) dog AND a tree BREAK sky",
]
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(params=["WEBUI", "FORGE", "REFORGE", "NEO"])
def tree(request: pytest.FixtureRequest) -> Path:
    """The folder of that host."""
    folder = Path(os.environ.get(f"{request.param}_DIR") or "none")
    if not (folder / "modules" / "infotext_utils.py").is_file():
        pytest.skip(f"{request.param}_DIR names no web UI (modules/infotext_utils.py)")
    return folder


def read_by(tree: Path, lora: Path, pictures: list[Path]) -> dict:
    command = [sys.executable, str(PROGRAM), str(tree), str(lora), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_host_reads_what_the_pictures_were_drawn_with(tree, files, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    output, lora = tmp_path / "out", student(tmp_path, files["sd1"], clip_skip=2)
    options = (
        "--prompts",
        tmp_path / "prompts.txt",
        "--seeds",
        "11,2147483647",
        "--output",
        output,
    )
    assert package(lora, files["sd1"], *options, "--name", "My few: steps", "--count", 8) == 0
    packaged = output / "My-few-steps.safetensors"
    renamed = tmp_path / "renamed.safetensors"  # a host knows it again by its hash
    shutil.copy(packaged, renamed)
    pictures = sorted((output / "pictures").iterdir())
    found = read_by(tree, renamed, pictures)
    autov3 = readers.file_hashes(packaged)["AutoV3"]
    is_neo = tree == Path(os.environ.get("NEO_DIR") or "none")
    settings = {name: SETTINGS[name] for name in SETTINGS if not is_neo or name != "Clip skip"}
    version = None if is_neo else "SD1"  # Neo tells no version, and leaves every clip skip out
    expected = {"alias": "My-few-steps", "shorthash": autov3, "version": version}
    assert found["lora"] == expected
    drawn = set()
    for read in found["pictures"]:
        prompt, _, tag = read["Prompt"].rpartition(" ")
        assert tag == "<lora:My-few-steps:1>" and read["Pasted"] == read["Prompt"]
        drawn.add((prompt, read["Seed"]))
        assert {name: read[name] for name in settings} == settings
        assert read["Negative prompt"] == ""
        assert read["Model hash"] == readers.file_hashes(files["sd1"])["AutoV2"]
        assert read["Lora hashes"] == f"My-few-steps: {autov3}"
    assert drawn == {(prompt, seed) for prompt in PROMPTS for seed in ("11", "2147483647")}


SETTINGS = {
    "Steps": "4",
    "Sampler": "Euler",
    "Schedule type": "Simple",
    "CFG scale": "1",
    "Size-1": "32",
    "Size-2": "32",
    "Model": "sd1",
    "Clip skip": "2",
    "RNG": "CPU",
}


def test_a_host_knows_a_renamed_lora_by_its_hash(tree, files, tmp_path):
    """With another alias the tag in a pasted prompt is changed to it."""
    (tmp_path / "prompts.txt").write_text("a cat", encoding="utf-8")
    lora, output = student(tmp_path, files["sd1"]), tmp_path / "out"
    options = ("--prompts", tmp_path / "prompts.txt", "--output", output, "--name", "first")
    assert package(lora, files["sd1"], *options) == 0
    # the original has the same tensors under its own alias
    found = read_by(tree, lora, sorted((output / "pictures").iterdir()))
    assert {read["Pasted"] for read in found["pictures"]} == {"a cat <lora:few:1>"}
    assert {read["Prompt"] for read in found["pictures"]} == {"a cat <lora:first:1>"}
