"""What is said of LoRAs that a recipe names, by what is in force while sampling."""

from __future__ import annotations

import json

import pytest
from dpdmd_studio.core.errors import RecipeError
from dpdmd_studio.core.recipe.merged_loras import PresentLora, merged_lora_notes
from dpdmd_studio.core.recipe.recipe import MergedLora, Recipe, usage_hint

SHA, OTHER = "ab" * 32, "cd" * 32
AUTOV3 = "0123456789ab"


def recipe(**fields) -> Recipe:
    return Recipe(
        family="sd1",
        prediction="eps",
        num_steps=1,
        sigmas=(14.6, 0.0),
        timesteps=(999.0,),
        merged_loras=(MergedLora(name="Style.safetensors", **{"strength": 0.7} | fields),),
    )


CASES = [
    ({"sha256": SHA}, None, "is missing here: add it at that strength"),
    ({"sha256": SHA}, {"sha256": SHA}, None),
    ({"sha256": SHA}, {"sha256": SHA.upper()}, None),
    ({"sha256": SHA}, {"sha256": OTHER}, "is missing here"),
    ({"sha256": SHA, "autov3": AUTOV3}, {"sha256": OTHER, "autov3": AUTOV3}, None),
    ({"sha256": SHA, "autov3": AUTOV3}, {"autov3": "f" * 12}, "is missing here"),
    ({"sha256": SHA}, {"sha256": SHA, "strength": 1.0}, "is on at 1; this LoRA was made for 0.7"),
    ({"sha256": SHA}, {}, None),  # a host that knows no hashes: the name decides
    ({}, {"sha256": SHA}, None),
    ({"sha256": SHA, "included": True}, None, None),
    ({"sha256": SHA, "included": True}, {"sha256": SHA}, "contains Style.safetensors"),
    ({"sha256": SHA, "included": True}, {"sha256": OTHER}, None),
]


@pytest.mark.parametrize(("merged", "present", "said"), CASES)
def test_a_merged_lora_is_missed_by_its_hash(merged, present, said):
    there = []
    if present is not None:
        there = [PresentLora(**{"name": "style.safetensors", "strength": 0.7} | present)]
    notes = merged_lora_notes(recipe(**merged), there)
    assert len(notes) == (said is not None)
    assert not said or said in notes[0]


def test_no_recipe_and_another_name_say_nothing_and_something():
    assert merged_lora_notes(None, []) == []
    other = PresentLora("another.safetensors", 0.7)
    assert "missing" in merged_lora_notes(recipe(), [other])[0]


def test_recipes_of_before_load_and_broken_new_fields_do_not():
    fields = json.loads(recipe(sha256=SHA, autov3=AUTOV3, included=True).to_json())
    assert Recipe.from_json(json.dumps(fields)).merged_loras[0].included
    old = [{"name": "a", "strength": 0.7, "sha256": SHA}]
    (lora,) = Recipe.from_json(json.dumps(fields | {"merged_loras": old})).merged_loras
    assert lora == MergedLora(name="a", strength=0.7, sha256=SHA)
    for broken in ({"included": 1}, {"included": "yes"}, {"autov3": "AB"}, {"autov3": SHA}):
        with pytest.raises(RecipeError, match=r"merged_loras\.(included|autov3) must be"):
            Recipe.from_json(json.dumps(fields | {"merged_loras": [old[0] | broken]}))


def test_the_hint_says_which_are_needed_and_which_are_in():
    assert f"Use it together with Style.safetensors at 0.7 ({SHA[:10]})." in usage_hint(
        recipe(sha256=SHA)
    )
    hint = usage_hint(recipe(sha256=SHA, included=True))
    assert "Contains Style.safetensors at 0.7; do not add it again." in hint
