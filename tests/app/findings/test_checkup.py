"""The verdicts of `check`: each is green on sound figures, and red on a fault planted for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.findings.checkup import Line, checkup_lines, checkup_table

GIB = 2**30
CONFIG = DistillConfig(steps=1000)
SOUND: dict[str, Any] = {
    "encoding": {"peak": GIB},
    "loading": {"peak": 2 * GIB, "dtype": "bfloat16", "guidance": 7.0, "rescale": 0.0},
    "adapters": {"largest": 0.0, "size": 3.0, "rounding": 0.0078},
    "picture": {
        "steps": 28, "guidance": 7.0, "decoder": "", "finite": True, "agreement": 0.97,
        "size": 0.9, "contrast": 60.0, "smoothness": 0.9, "drawing": 3 * GIB, "decoding": 3 * GIB,
    },
    "few_steps": {"hedging": 0.9, "uncertain": 0.1, "steps": 4},
    "updates": {"seconds": [3.0, 2.0, 2.5]},
    "memory": {
        "student": 10 * GIB, "fake": 9 * GIB, "optimizer": 8 * GIB, "estimate": 10 * GIB,
        "share": 1.0, "fallbacks": [],
    },
    "float32": {"device": "cuda"},
    "bfloat16": {"finite": True, "errors": {"999": 0.2, "749": 0.05}},
    "float16": {"finite": True, "errors": {"999": 0.02, "749": 0.01}},
}  # fmt: skip
PICTURE, LORA, FORMAT, MEMORY, TIME, FEW = range(6)


def lines(**changed: dict[str, Any] | None) -> list[Line]:
    """The lines of sound figures with some parts changed; None takes a part away."""
    figures = copy.deepcopy(SOUND)
    for part, values in changed.items():
        if values is None:
            del figures[part]
        elif "error" in values:
            figures[part] = values
        else:
            figures[part] |= values
    return checkup_lines(figures, CONFIG)


def test_sound_figures_are_green_and_give_no_advice():
    found = lines()
    assert [line.verdict for line in found] == ["green"] * 6
    assert not any(line.advice for line in found)
    assert "2.50 s an update" in found[TIME].found and "42 min for 1000" in found[TIME].found


@pytest.mark.parametrize(
    ("line", "part", "changed", "said"),
    [
        (PICTURE, "picture", {"finite": False}, "--dtype"),
        (PICTURE, "picture", {"contrast": 0.5}, "--vae"),
        (PICTURE, "picture", {"contrast": 0.5, "rough": True}, "Name the model's VAE with --vae"),
        (PICTURE, "picture", {"decoder": "The VAE makes NaN"}, "--vae"),
        (PICTURE, "picture", {"smoothness": 0.1}, "--prediction"),
        (PICTURE, "picture", {"agreement": 0.4}, "--prediction"),
        (PICTURE, "picture", {"agreement": 0.4, "only": True}, "(--shift)"),
        (PICTURE, "picture", {"size": 14.6}, "--prediction"),
        (PICTURE, "loading", {"error": "NaN weights", "red": True}, "again"),
        (LORA, "adapters", {"largest": 0.5}, "--lora-layers"),
        (LORA, "adapters", {"largest": 1e9, "size": 0.0}, "--lora-layers"),
        (FORMAT, "bfloat16", {"errors": {"999": 0.83}}, "--dtype float16"),
        (FORMAT, "bfloat16", {"finite": False}, "--dtype float16"),
        (MEMORY, "memory", {"student": 10.9 * GIB}, "preset"),
        (MEMORY, "memory", {"optimizer": 12 * GIB}, "preset"),
        (MEMORY, "memory", {"estimate": 20 * GIB}, "--no-fit-memory"),
        (MEMORY, "updates", {"error": "too little", "out_of_memory": True}, "--resolution"),
        (FEW, "few_steps", {"hedging": 0.1}, "few-steps.png"),
        (FEW, "few_steps", {"hedging": -0.4}, "no proof"),
    ],
)
def test_a_planted_fault_is_red_with_one_line_of_advice(line, part, changed, said):
    found = lines(**{part: changed})
    assert found[line].verdict == "red"
    assert said in found[line].advice and "\n" not in found[line].advice
    others = [other.verdict for number, other in enumerate(found) if number != line]
    assert "red" not in others


def test_a_format_that_no_other_betters_is_answered_with_float32():
    bad = {"finite": True, "errors": {"999": 0.8}}
    assert "--dtype float32" in lines(bfloat16=bad, float16=bad)[FORMAT].advice
    exact = {"dtype": "float32"}
    assert lines(bfloat16=bad, float16=bad, loading=exact)[FORMAT].verdict == "green"


def test_rounding_a_slow_device_and_a_small_network_are_no_faults():
    assert lines(adapters={"largest": 0.02})[LORA].verdict == "green"
    assert lines(updates={"seconds": [4000.0]})[TIME].verdict == "green"
    small = lines(memory={"share": 0.01, "student": 99 * GIB})[MEMORY]
    assert small.verdict == "not measured" and "published size" in small.found


@pytest.mark.parametrize(
    ("part", "line"),
    [("picture", PICTURE), ("adapters", LORA), ("bfloat16", FORMAT), ("loading", FORMAT),
     ("memory", MEMORY), ("updates", TIME), ("few_steps", FEW)],
)  # fmt: skip
def test_what_is_missing_or_failed_is_not_measured_and_says_why(part, line):
    assert lines(**{part: None})[line].verdict == "not measured"
    failed = lines(**{part: {"error": "no room for it"}})[line]
    assert failed.verdict == "not measured"
    assert part == "loading" or "no room for it" in failed.found


def test_signs_of_a_few_step_model_are_not_read_from_noise():
    found = lines(picture={"smoothness": 0.0}, few_steps={"hedging": -1.0})
    assert found[PICTURE].verdict == "red" and found[FEW].verdict == "not measured"


def test_images_that_vary_too_much_do_not_tell():
    found = lines(few_steps={"hedging": 0.3, "uncertain": 0.2})[FEW]
    assert found.verdict == "not measured" and "do not tell" in found.found


def test_the_table_is_markdown_that_anyone_can_paste():
    found = lines(few_steps={"hedging": 0.0})
    piped = replace(found[0], found="one|two\nthree")
    table = checkup_table({"Checkpoint": "my.safetensors"}, [piped, *found[1:]], SOUND)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert all(row.count("|") == 4 for row in rows if "**" in row)
    assert "one/two three" in table and "| student update | 10.00 |" in table
    assert "- Already a few-step model?: Compare" in table
    assert "estimate of an update" not in checkup_table({}, found, {"encoding": {"peak": GIB}})
