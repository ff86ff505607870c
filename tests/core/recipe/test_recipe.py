"""The recipe survives its own JSON bit for bit, and nothing hostile gets past its reader."""

import contextlib
import json
import random

import pytest
from dpdmd_studio.core.errors import RecipeError
from dpdmd_studio.core.recipe.recipe import (
    METADATA_KEY,
    Anchor,
    MergedLora,
    Recipe,
    is_plain_grid,
    plain_host_settings,
    read_recipe,
    usage_hint,
)

FLOW = {
    "family": "sd3",
    "prediction": "flow",
    "num_steps": 4,
    "sigmas": (1.0, 0.9, 0.75, 0.5, 0.0),
    "timesteps": (1000.0, 900.0, 750.0, 500.0),
    "shift": 3.0,
}
VP = {
    "family": "sdxl",
    "prediction": "eps",
    "num_steps": 4,
    "sigmas": (14.614641229333639, 4.0817, 1.6129, 0.6932, 0.0),
    "timesteps": (999.0, 749.0, 499.0, 249.0),
    "clip_skip": 2,
    "resolutions": ((1024, 1024), (832, 1216)),
    "merged_loras": (MergedLora(name="style é", strength=0.7, sha256="ab" * 32),),
    "teacher_name": "my model",
    "teacher_sha256": "0123456789" + "a" * 54,
    "teacher_guidance_scale": 7.5,
    "teacher_negative": None,
    "anchor": Anchor(sigma=4.0817, timestep=749.0, steps=7, grid=28),
}


def changed(**fields):
    return json.dumps({**json.loads(Recipe(**FLOW).to_json()), **fields})


@pytest.mark.parametrize("fields", [FLOW, VP])
def test_json_round_trip_is_exact(fields):
    recipe = Recipe(**fields)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(recipe.to_json().encode()) == recipe


def test_guidance_of_the_real_score_is_kept_where_it_was_another():
    assert "real_guidance" not in Recipe(**VP).to_json()
    recipe = Recipe(**VP, real_guidance_scale=1.75, real_guidance_interval=(0, 900))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.real_guidance_interval == (0.0, 900.0)


def test_floats_keep_every_bit():
    rng = random.Random(3)
    sigmas = (*sorted((rng.random() for _ in range(4)), reverse=True), 0.0)
    read = Recipe.from_json(Recipe(**{**FLOW, "sigmas": sigmas}).to_json())
    assert [s.hex() for s in read.sigmas] == [s.hex() for s in sigmas]


def test_unknown_fields_are_ignored_up_to_a_bound():
    assert Recipe.from_json(changed(colour="red", nested={"a": [1]})) == Recipe(**FLOW)
    with pytest.raises(RecipeError, match="too many unknown fields"):
        Recipe.from_json(changed(**{f"x{i}": 0 for i in range(100)}))


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, True, None, [1]])
def test_other_versions_are_refused_by_name(version):
    with pytest.raises(RecipeError, match="version"):
        Recipe.from_json(changed(version=version))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "flux"),
        ("prediction", "velocity"),
        ("solver", "euler"),
        ("num_steps", 0),
        ("num_steps", 4.0),
        ("num_steps", 10**30),
        ("num_steps", 5),
        ("sigmas", [1.0, 0.9, 0.75, 0.5, 0.1]),
        ("sigmas", [1.0, 0.75, 0.75, 0.5, 0.0]),
        ("sigmas", [1.0, 0.9, "0.75", 0.5, 0.0]),
        ("sigmas", [2.0, 0.9, 0.75, 0.5, 0.0]),
        ("sigmas", {"0": 1}),
        ("timesteps", [1001, 900, 750, 500]),
        ("timesteps", [True, 900, 750, 500]),
        ("guidance_scale", -1),
        ("guidance_scale", 10**400),
        ("clip_skip", 0),
        ("resolutions", [[1024]]),
        ("resolutions", [[1024, "x"]]),
        ("resolutions", [[8, 8]] * 1000),
        ("shift", 0),
        ("zero_terminal_snr", 1),
        ("merged_loras", [{"strength": 1}]),
        ("merged_loras", [3]),
        ("merged_loras", [{"name": "a\nb", "strength": 1.0}]),
        ("teacher_name", "\x1b[31mred"),
        ("teacher_name", "\ud800"),
        ("teacher_name", "x" * 2000),
        ("teacher_sha256", "AB" * 32),
        ("teacher_negative", 3),
        ("anchor", {"sigma": 0.9}),
        ("anchor", {"sigma": 0.9, "timestep": 900, "steps": 29, "grid": 28}),
        ("anchor", [1]),
        ("num_anchored_steps", 5),
        ("objective", "DMD; DROP"),
        ("real_guidance_scale", "7"),
        ("real_guidance_interval", [500]),
        ("real_guidance_interval", [0, 1001]),
        ("real_guidance_interval", 700),
    ],
)
def test_a_broken_field_is_a_clear_error(field, value):
    with pytest.raises(RecipeError, match=r"recipe is broken: .*; found "):
        Recipe.from_json(changed(**{field: value}))


@pytest.mark.parametrize(
    "source",
    [
        *("", "{", "null", "[]", "3", '"x"', "[" * 30_000, '{"a":' * 5_000, "x" * 300_000),
        *(b"\xff\xfe{}", '{"version":1,"num_steps":NaN}', '{"version":1}'),
        '{"version":' + "9" * 5000 + "}",
    ],
)
def test_text_that_is_no_recipe_is_a_clear_error(source):
    with pytest.raises(RecipeError):
        Recipe.from_json(source)


def test_fuzzed_recipes_parse_or_raise_a_recipe_error():
    rng = random.Random(0)
    source = Recipe(**VP).to_json()
    messages = []
    pieces = ["0", "-1", "1e999", "null", "{}", "[]", '"', ",", "}", "\\u0000", "\x00", "9" * 30]
    for _ in range(3000):
        text = source
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            text = text[:start] + rng.choice(pieces) + text[start + rng.randint(0, 12) :]
        try:
            Recipe.from_json(text)
        except RecipeError as error:
            messages.append(str(error))
    assert len(messages) > 1000
    assert max(map(len, messages)) < 500


def test_fuzzed_values_parse_or_raise_a_recipe_error():
    rng = random.Random(1)
    values = [None, True, -1, 0, 1, 2.5, 1e300, 10**400, "", "x", [], [[]], {}, [None], [1, 2]]
    values += [{"name": 3}, [{"name": "x", "strength": []}]]
    fields = json.loads(Recipe(**VP).to_json())
    for _ in range(3000):
        broken = dict(fields)
        for name in rng.sample(list(fields), 2):
            broken[name] = rng.choice(values)
        with contextlib.suppress(RecipeError):
            Recipe.from_json(json.dumps(broken))


def test_an_invalid_recipe_cannot_be_built():
    with pytest.raises(RecipeError, match="sigmas must end in 0"):
        Recipe(**{**FLOW, "sigmas": (1.0, 0.9, 0.75, 0.5, 0.25)})


def test_metadata_without_a_recipe_gives_none():
    assert read_recipe({"ss_output_name": "x"}) is None
    assert read_recipe({METADATA_KEY: Recipe(**FLOW).to_json()}) == Recipe(**FLOW)


def test_plain_hosts_reproduce_the_default_grids_only():
    assert plain_host_settings(Recipe(**FLOW)) == "Euler, Simple, 4 steps, CFG 1"
    assert plain_host_settings(Recipe(**VP)) == "Euler, Simple, 4 steps, CFG 1"
    moved = Recipe(**{**VP, "timesteps": (999.0, 759.0, 499.0, 249.0)})
    assert not is_plain_grid(moved)
    assert "DP-DMD sampler" in moved.plain_host
    shift_6 = tuple(6 * t / (1 + 5 * t) for t in (1.0, 0.75, 0.5, 0.25, 0.0))
    assert Recipe(**{**FLOW, "sigmas": shift_6, "shift": 6.0}).plain_host.endswith("shift 6")


def test_a_flow_of_sdxl_says_what_a_host_needs():
    found = Recipe(**{**FLOW, "family": "sdxl"})
    assert found.plain_host == (
        "Euler, Simple, 4 steps, CFG 1, shift 3 as a rectified flow "
        "(ComfyUI: ModelSamplingSD3 before the sampler)"
    )


def test_the_hint_for_people_repeats_the_contract():
    hint = usage_hint(Recipe(**VP))
    facts = ["4 steps", "CFG 1", "strength 1.0", "832x1216", "my model (0123456789)", "é at 0.7"]
    assert [fact for fact in facts if fact not in hint] == []


def test_the_longest_recipe_that_can_be_built_can_be_read():
    loras = tuple(MergedLora(name="\U0001f600" * 255, strength=1.0) for _ in range(32))
    extremes = {"merged_loras": loras, "teacher_negative": "\U0001f600" * 10_000}
    recipe = Recipe(**{**FLOW, **extremes})
    assert Recipe.from_json(recipe.to_json()) == recipe
