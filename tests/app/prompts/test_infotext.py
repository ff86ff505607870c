"""Infotext gives prompt and negative prompt, however its settings are ordered and parted."""

import json

import pytest
from dpdmd_studio.app.prompts.images import image_prompt
from dpdmd_studio.app.prompts.infotext import infotext_prompts, is_settings_line


@pytest.mark.parametrize(
    "settings",
    [
        "Steps: 20, Sampler: Euler, Seed: 1",
        "Sampler: Euler, Steps: 20, Seed: 1, Size: 512x512",
        "Steps: 20| Seed: 1| Sampler: Euler| Size: 512x512",
        "steps:20; sampler:Euler; seed:1",
        "Size: 512x768, Model: a, b, Seed: 7",
        "Model hash: abc, Model: x: y, CFG scale: 7.5",
        'Civitai resources: [{"type":"lora","weight":1}], Steps: 20, Seed: 3',
        'Template: "a {b|c}, Steps: 2", Steps: 20, Seed: 3',
        "Steps: 20, Sampler: Euler,\nSeed: 1, Size: 8x8",
        "Steps: 20, Sampler: Euler\nTemplate: a {b|c}\nNegative Template: ugly",
        "Steps: 20",
        "  Steps: 20, Seed: 1  ",
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_settings_are_found_whatever_leads_them(settings, line_end):
    text = f"a red fox,\nrunning\nNegative prompt: ugly\n{settings}".replace("\n", line_end)
    assert infotext_prompts(text) == ("a red fox, running", "ugly")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a sheet\nSteps: 3, then jump\nnegative prompt: ugly\nSteps: 20, Seed: 1",
         ("a sheet Steps: 3, then jump", "ugly")),
        ("a sign:\nModel: Anna, Size: tall", ("a sign: Model: Anna, Size: tall", "")),
        ("a note: buy milk, seed: none", ("a note: buy milk, seed: none", "")),
        ("a red fox Steps: 20, Sampler: Euler, Seed: 1", ("a red fox", "")),
        ("a fox Negative prompt: ugly Steps: 20, CFG scale: 7, Seed: 1", ("a fox", "ugly")),
        ("Positive prompt: a fox\nNegative prompt: ugly\nSteps: 4, Seed: 1", ("a fox", "ugly")),
        ("Steps: 4, Seed: 1", ("", "")),
    ],
)  # fmt: skip
def test_words_of_a_prompt_are_no_settings(text, wanted):
    assert infotext_prompts(text) == wanted


def test_long_hostile_lines_take_no_time():
    for text in (
        "a: " * 100_000,
        'a:"' * 100_000,
        'a:\\",' * 100_000,
        " " * 300_000,
        "a\n" * 100_000,
    ):
        is_settings_line(text)
        infotext_prompts(text)


FOX = {"prompt": "a red fox", "negative_prompt": "ugly"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parameters", {"sui_image_params": {"prompt": "a red fox", "negativeprompt": "ugly"}}),
        ("parameters", FOX),
        ("parameters", [FOX]),
        ("parameters", json.dumps(FOX)),
        ("parameters", {"Prompt": "a red fox", "Negative": "ugly", "steps": 30}),
        ("invokeai_metadata", {"positive_prompt": "a red fox", "negative_prompt": "ugly"}),
        ("sd-metadata", {"image": {"prompt": [FOX | {"weight": 1}], "uc": "ugly"}}),
        ("Comment", {"prompt": "a red fox", "uc": "ugly"}),
    ],
)
def test_the_json_of_other_programs_is_decoded(name, content):
    for text in (json.dumps(content), "\ufeff " + json.dumps(content, indent=2)):
        assert image_prompt({name: text}) == ("a red fox", "ugly")
    novelai = {"Software": "NovelAI", "Description": "a fox"}
    assert image_prompt({**novelai, name: json.dumps(content)})[0] == "a red fox"
    assert image_prompt(novelai) == ("a fox", "")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1, 2]",
        '{"steps": 20}',
        '{"prompt": "a red fox", "cut off',
        "{'prompt': 'a red fox', 'seed': None}",
        '{"prompt": ""}',
        '{"prompt": {"a": 1}}',
        '{"prompt": "{\\"a\\": 1}"}',
        '{"prompt": "a"}\nSteps: 4, Seed: 1' + "x",
        '<?xpacket begin=""?><x:xmpmeta/>',
        "QUJD" * 200,
        '{"a":' * 50_000,
        '{"n": ' + "9" * 5000 + "}",
    ],
)
def test_other_data_is_no_prompt(text):
    for name in ("parameters", "prompt", "Comment", "Description", "UserComment"):
        assert image_prompt({name: text}) == ("", ""), name
    assert image_prompt({"Software": "NovelAI", "Description": text}) == ("", "")


@pytest.mark.parametrize(
    "prompt", ["[cat:dog:0.5] in a park", "{{masterpiece}}, a cat", '"a cat" on a sign', "(a:1.2)"]
)
def test_prompts_that_begin_with_a_bracket_stay_prompts(prompt):
    found, _ = image_prompt({"parameters": f"{prompt}\nSteps: 4, Seed: 1"})
    assert found.replace("\\", "") == prompt
