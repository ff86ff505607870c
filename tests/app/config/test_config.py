"""Settings: bounds, contradictions, JSON, and the command line made from them."""

import argparse
import dataclasses

import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig, parse_resolutions
from dpdmd_studio.app.config.new_run import note_size
from dpdmd_studio.app.config.presets import PRESETS, preset
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, parse_seeds
from dpdmd_studio.app.library.choices import ASSETS
from dpdmd_studio.cli.arguments import add_config_arguments, config_values, parse_lora
from dpdmd_studio.core.errors import RunError, SettingsError
from dpdmd_studio.core.families import identify
from tiny_runs import heard

EMOJI = ASSETS / "emoji-sd3.safetensors"


def test_defaults_are_valid_and_round_trip_through_json():
    config = DistillConfig().validate()
    assert DistillConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor_step": 13}, "teacher's grid has only 12 steps"),
        ({"num_steps": 1}, "least allowed is 2"),
        ({"student_rank": 0}, "least allowed is 1"),
        ({"num_anchored_steps": 4}, "at most 3"),
        ({"num_anchored_steps": 4, "objective": "detach_only"}, "at most 3"),
        ({"num_anchored_steps": 5, "objective": "no_detach"}, "at most 3"),
        ({"max_grad_norm": 0.0}, "least allowed"),
        ({"resolution": "\u00b2"}, "not understood"),
        ({"num_anchored_steps": 2, "teacher_steps": 30}, "multiple of 4"),
        ({"num_anchored_steps": 2, "anchor_step": 6}, "before the second"),
        ({"objective": "magic"}, "expected one of dp_dmd"),
        ({"student_lr": float("nan")}, "finite"),
        ({"student_lr": "fast"}, "expected float"),
        ({"steps": 1.5}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"resolution": "big"}, "not understood"),
        ({"resolution": "1x2x3"}, "not understood"),
        ({"resolution": "99999"}, "outside 16 to 8192"),
        ({"resolution": "9" * 5000}, "not understood"),
        ({"student_lr": 10**400}, "more than 18 digits"),
        ({"steps": 10**400}, "more than 18 digits"),
        ({"seed": -(10**30)}, "more than 18 digits"),
        ({"teacher_negative": "a \ud83d"}, "half a character"),
        ({"device": "\udcff"}, "half a character"),
        ({"learning_rate": 1.0}, "Unknown settings: learning_rate"),
        ({"guidance_rescale": -0.5}, "expected 0 to 1, or -1 for what suits"),
        ({"guidance_rescale": -2.0}, "least allowed is -1"),
        ({"real_guidance_low": 700, "real_guidance_high": 700}, "real_guidance_low is 700"),
        ({"real_guidance_high": 1001}, "most allowed is 1000"),
        ({"renoise_anneal_steps": -1}, "least allowed is 0"),
    ],
)
def test_nonsense_is_named(values, message):
    with pytest.raises(SettingsError, match=message):
        DistillConfig.from_dict(values)


def test_the_default_anchor_is_the_end_of_the_first_step():
    config = DistillConfig()
    assert (config.effective_teacher_steps, config.effective_anchor_step) == (12, 3)
    config = DistillConfig(teacher_steps=0)
    assert (config.effective_teacher_steps, config.effective_anchor_step) == (28, 7)
    config = DistillConfig(num_steps=8, teacher_steps=0)
    assert (config.effective_teacher_steps, config.effective_anchor_step) == (56, 7)
    config = DistillConfig(teacher_steps=30)
    assert config.effective_anchor_step == 8


def test_resolutions_are_width_by_height():
    assert parse_resolutions("1024x1024, 832X1216,512") == ((1024, 1024), (832, 1216), (512, 512))
    assert parse_resolutions("") == ()


def test_every_setting_is_an_option_that_arrives():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    assert config_values(parser.parse_args([])) == {}
    for spec in dataclasses.fields(DistillConfig):
        option = "--" + spec.name.replace("_", "-")
        if isinstance(spec.default, bool):
            arguments, expected = ["--no-" + option[2:]], False
        elif spec.metadata["choices"]:
            expected = spec.metadata["choices"][-1]
            arguments = [option, expected]
        else:
            expected = type(spec.default)(2)
            arguments = [option, str(expected)]
        assert config_values(parser.parse_args(arguments)) == {spec.name: expected}


def test_every_setting_has_help():
    assert all(spec.metadata["help"] for spec in dataclasses.fields(DistillConfig))


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [3]), ("0-3", [0, 1, 2, 3]), ("5, 7-8,5", [5, 7, 8]), ("0", [0])]
)
def test_seed_lists(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "-1", "1-", "0-99999999", "1,,2", "9" * 5000, "0-9999," * 90]
)
def test_bad_seed_lists_are_named(text):
    with pytest.raises(SettingsError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("C:\\loras\\a.safetensors", ("C:\\loras\\a.safetensors", 1.0)),
        ("C:/a.safetensors:-1", ("C:/a.safetensors", -1.0)),
        ("a:b.safetensors", ("a:b.safetensors", 1.0)),
    ],
)
def test_lora_arguments(text, expected):
    assert parse_lora(text) == expected


@pytest.mark.parametrize(
    "damage",
    [
        {"output": 5},
        {"output": ""},
        {"output": "a\0b"},
        {"model": {"checkpoint": None}},
        {"model": {"checkpoint": ["a"]}},
        {"model": {"checkpoint": "a", "vae": 1}},
        {"model": []},
        {"config": []},
        {"config": None},
        {"teacher_loras": [5]},
        {"teacher_loras": {"path": "a"}},
        {"teacher_loras": [{"path": "a", "strength": "1"}]},
        {"file_format": "onnx"},
        {"overwrite": "yes"},
        {"created_at": "now"},
        {"extra": []},
        {"unknown": 1},
    ],
)
def test_a_damaged_request_is_named(damage):
    request = DistillRequest(
        model=ModelFiles(checkpoint="a"), config=DistillConfig(), output="b.safetensors"
    ).to_dict()
    assert DistillRequest.from_dict(request)
    with pytest.raises(RunError, match="does not describe a run"):
        DistillRequest.from_dict(request | damage)


def test_presets_are_valid_settings():
    for family, memories in PRESETS.items():
        for memory in memories:
            DistillConfig.from_dict(preset(family, "", memory))
    with pytest.raises(SettingsError, match="presets for sdxl are 8gb"):
        preset("sdxl", "", "6gb")


def test_a_demo_checkpoint_at_another_size_is_noted_and_other_models_are_not():
    with heard() as lines:
        note_size([(64, 64)], identify(EMOJI))
        note_size([(1024, 1024)], dataclasses.replace(identify(EMOJI), stated={}))
    assert not lines
    with heard() as lines:
        note_size([(64, 64), (128, 64)], identify(EMOJI))
    assert lines == [
        "This checkpoint draws 64 x 64 pixels alone: images of other sizes come out wrong."
    ]


@pytest.mark.parametrize(
    ("prediction", "given", "expected"),
    [
        ("eps", {}, (1, "random")),
        ("v", {}, (1, "random")),
        ("flow", {}, (2, "last")),
        ("flow", {"num_anchored_steps": 1}, (1, "random")),
        ("flow", {"gradient_steps": "random"}, (2, "random")),
        ("flow", {"objective": "dmd"}, (1, "random")),
        ("flow", {"num_steps": 2}, (1, "random")),
        ("flow", {"teacher_steps": 10}, (1, "random")),  # it does not pass through the second sigma
        ("flow", {"anchor_step": 6}, (1, "random")),
        ("flow", {"num_steps": 6}, (2, "last")),
        ("eps", {"num_anchored_steps": 2}, (2, "last")),
        ("eps", {"num_anchored_steps": 2, "gradient_steps": "all"}, (2, "all")),
    ],
)
def test_anchored_steps_that_are_left_open_suit_the_model(prediction, given, expected):
    found = DistillConfig.from_dict(given).anchored_for(prediction).validate()
    assert (found.num_anchored_steps, found.gradient_steps) == expected
    assert found.anchored_for("eps") == found  # settled once
