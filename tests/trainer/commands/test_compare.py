"""The compare command end to end on tiny checkpoints: arms, numbers, report, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lora_networks
import pytest
import torch
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.cli import main
from dpdmd_studio.core.lora.file import NewLora, write_lora
from dpdmd_studio.core.recipe.recipe import Anchor
from dpdmd_studio.trainer.commands import compare as command
from dpdmd_studio.trainer.loading.checkpoint import open_checkpoint

pytestmark = pytest.mark.usefixtures("home")

SMALL = ("--resolution", "32x32", "--teacher-steps", "2", "--seeds", "0-2")


@pytest.fixture(scope="module")
def loras(files, tmp_path_factory):
    """Two LoRAs for the tiny SD 1.x checkpoint and one for SD3, with a recipe each."""
    folder, found = tmp_path_factory.mktemp("loras"), {}
    plain = open_checkpoint(files["sd1"], dtype=torch.float32, device="cpu").load()
    for seed, name in ((1, "one"), (2, "two")):
        pairs = lora_networks.random_pairs(plain.network, plain.family, plain.config, seed=seed)
        found[name] = folder / f"{name}.safetensors"
        recipe = lora_networks.RECIPES["sd1"]
        write_lora(found[name], NewLora(plain.family, plain.config, pairs, recipe))
    network, family, config = lora_networks.build("sd3")
    pairs = lora_networks.random_pairs(network, family, config)
    found["sd3"] = folder / "sd3.safetensors"
    write_lora(found["sd3"], NewLora(family, config, pairs, lora_networks.RECIPES["sd3"]))
    return found


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na {red|blue} dog\n")
    return path


def compare(files, prompts, output, *options) -> int:
    command = ["compare", str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    return main([*command, *SMALL, *map(str, options)])


def test_two_loras_with_teacher_rivals_and_report(files, loras, prompts, tmp_path, capsys):
    output = tmp_path / "out"
    assert compare(files, prompts, output, "--lora", loras["one"], "--lora", loras["two"]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads((output / "report.json").read_text(encoding="utf-8"))
    arms = {arm["name"]: arm for arm in numbers["arms"]}
    steps = lora_networks.RECIPES["sd1"].num_steps
    assert list(arms) == [
        "Teacher, 2 steps, guidance 7.5",
        f"Teacher without guidance, {steps} steps",
        f"one, {steps} steps, off at step 1",
        f"one, {steps} steps",
        f"two, {steps} steps, off at step 1",
        f"two, {steps} steps",
    ]
    assert [arm["evaluations"] for arm in arms.values()] == [4] + [steps] * 5
    for name in arms:
        assert name in shown
        assert arms[name]["measures"].keys() == {
            *("sample_diversity", "teacher_distance"),
            *("efficientnet_diversity", "efficientnet_distance"),
        }
    values = [arm["measures"]["sample_diversity"] for arm in arms.values()]
    assert len(set(values)) == len(values)  # every arm drew with weights of its own
    assert numbers["prompts"][0] == "a cat" and "{" not in numbers["prompts"][1]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert len(list(output.glob("grid-*.png"))) == 6


@pytest.mark.parametrize(("grid", "steps"), [(12, 28), (56, 56)])
def test_a_coarse_grid_of_anchors_is_not_the_teachers(grid, steps, files, tmp_path):
    anchor = Anchor(sigma=14.0, timestep=999.0, steps=3, grid=grid)
    recipe = replace(lora_networks.RECIPES["sd1"], anchor=anchor)
    lora: Any = SimpleNamespace(recipe=recipe, path=tmp_path / "one.safetensors")
    students = [command.Student("one", lora, 1.0, torch.tensor(recipe.sigmas), 1.0)]
    request = command.CompareRequest(
        model=ModelFiles(checkpoint=str(files["sd1"])), prompts=("a",), seeds=(0, 1),
        output=tmp_path, loras=(),
    )  # fmt: skip
    checkpoint = open_checkpoint(files["sd1"], dtype=torch.float32, device="cpu")
    teacher = command.arm_settings(request, checkpoint, students, {})[0]
    assert len(teacher.stages[0].sigmas) - 1 == steps


def test_a_zero_terminal_snr_teacher_is_drawn_with_the_rescale_that_it_is_trained_with(
    files, prompts, tmp_path, monkeypatch
):
    made, found = command.ImageSampler, []
    recorded = lambda **known: found.append(known["guidance_rescale"]) or made(**known)  # noqa: E731
    monkeypatch.setattr(command, "ImageSampler", recorded)
    zero = ("--prediction", "v", "--zero-terminal-snr", "yes")
    assert compare(files, prompts, tmp_path / "zero", *zero) == 0
    assert compare(files, prompts, tmp_path / "usual") == 0
    assert found == [0.7, 0.0]


def test_strengths_and_a_style_in_every_arm(files, loras, prompts, tmp_path):
    output = tmp_path / "out"
    options = ("--no-rival", "--lora", loras["one"], "--lora", f"{loras['one']}:0")
    assert compare(files, prompts, output, *options, "--with-lora", loras["two"], "--json") == 0
    arms = json.loads((output / "report.json").read_text(encoding="utf-8"))["arms"]
    steps = lora_networks.RECIPES["sd1"].num_steps
    assert [arm["name"] for arm in arms[2:]] == [f"one, {steps} steps", f"one at 0, {steps} steps"]
    bare, off = arms[1]["measures"], arms[3]["measures"]
    assert off["sample_diversity"] == pytest.approx(bare["sample_diversity"])  # style in both
    plain = tmp_path / "plain"
    assert compare(files, prompts, plain, "--no-rival") == 0
    other = json.loads((plain / "report.json").read_text(encoding="utf-8"))["arms"][1]
    assert other["measures"]["sample_diversity"] != bare["sample_diversity"]


def test_prompts_of_training_are_said_and_left_out(files, loras, prompts, tmp_path, capsys):
    trained = tmp_path / "trained.txt"
    trained.write_text("a  cat\n")
    output = tmp_path / "out"
    options = ("--no-rival", "--lora", loras["one"], "--training-prompts", trained)
    assert compare(files, prompts, output, *options) == 0
    assert "1 prompts are among the training prompts and are left out" in capsys.readouterr().err
    numbers = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert len(numbers["prompts"]) == 1 and "dog" in numbers["prompts"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "5"), "Found 1 seed; diversity needs at least 2"),
        (("--features", "nothing-here"), "no folder of image features"),
        (("--lora", "sd3"), "LoRA for sd3, but the model is"),
        (("--lora", "one", "--lora", "sd3"), "LoRA for sd3, but the model is"),
        (("--with-lora", "sd3"), "LoRA for sd3, but the model is"),
        (("--training-prompts", "same"), "No prompts are left to compare on"),
        (("--lora", "no-such.safetensors"), "no-such.safetensors"),
        (("--steps", "1"), "steps is 1; expected 2 to 128"),
        (("--resolution", "33x32"), "multiples of 8"),
    ],
)
def test_mistakes_are_one_clear_line(files, loras, prompts, tmp_path, capsys, options, message):
    same = tmp_path / "same.txt"
    same.write_text("a red dog\na blue dog\na cat\n")
    named = {name: str(path) for name, path in loras.items()} | {"same": str(same)}
    options = [named.get(option, option) for option in options]
    assert compare(files, prompts, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_an_earlier_report_is_not_overwritten_unasked(files, loras, prompts, tmp_path, capsys):
    output = tmp_path / "out"
    assert compare(files, prompts, output, "--no-rival") == 0
    before = (output / "report.json").read_bytes()
    assert compare(files, prompts, output, "--no-rival") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "report.json").read_bytes() == before
    assert compare(files, prompts, output, "--no-rival", "--overwrite") == 0
