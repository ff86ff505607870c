"""What is in force for which facts, with exact levels and words, and that both hosts agree."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import comfy_host
import numpy as np
import pytest
import torch
from dpdmd_studio.comfy_nodes.sampling import recipes as comfy_recipes
from dpdmd_studio.comfy_nodes.sampling.anchored import ANCHORED_WORDS
from dpdmd_studio.core.errors import LoraError, RecipeError, SettingsError
from dpdmd_studio.core.recipe.anchored import GUIDED, ONE_PLAIN, AskedAnchor
from dpdmd_studio.core.recipe.few_step import default_recipe, plan
from dpdmd_studio.core.recipe.known_students import KNOWN_STUDENTS
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe
from dpdmd_studio.core.recipe.resolve import (
    AS_TRAINED,
    FILE,
    KIND,
    USUAL,
    Asked,
    LoraFacts,
    ModelFacts,
    Resolved,
    Words,
    check_model,
    kind_note,
    resolve,
)
from dpdmd_studio.webui_extension.host import models as webui_models
from dpdmd_studio.webui_extension.sampling import generation

WORDS = Words(
    model="model",
    kinds="kinds",
    other_family="Another sampler.",
    other_sampling="Take it off.",
    predictions={"v": "Say v."},
    zero_terminal_snr="turn it {wanted}",
    no_recipe="Usual {steps} of {family}. {advice}",
)
SD1, SDXL_V = ModelFacts("sd1", "eps"), ModelFacts("sdxl", "v", zero_terminal_snr=True)
SD3 = ModelFacts("sd3", "flow", 3.0)
SD1_RECIPE, SD3_RECIPE = default_recipe("sd1", "eps"), default_recipe("sd3", "flow")
SDXL_V_RECIPE = default_recipe("sdxl", "v", zero_terminal_snr=True)
GUIDED_SDE = dataclasses.replace(SD3_RECIPE, guidance_scale=2.5, solver="sde", plain_host="")
FEW = LoraFacts("few", SD1_RECIPE, 1.0)


def vp(*timesteps: int) -> list[float]:
    """Levels of the usual VP schedule at these timesteps, and 0."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)[list(timesteps)]
    return [*np.sqrt((1 - alphas) / alphas).tolist(), 0.0]


SD1_LEVELS = vp(999, 749, 499, 249)


def asked_of(
    facts: ModelFacts | None, *loras: LoraFacts, words: Words = WORDS, **asked: Any
) -> Resolved:
    return resolve(facts, loras, Asked(**asked), words)


# Which recipe is in force


@pytest.mark.parametrize(
    ("facts", "loras", "asked", "origin", "levels", "solver", "notes"),
    [
        # the file's
        (SD1, [FEW], {}, FILE, SD1_LEVELS, "ode", []),
        (None, [FEW], {}, FILE, SD1_LEVELS, "ode", []),  # before a model is loaded
        (SD1, [LoraFacts(recipe=SD1_RECIPE.to_json())], {}, FILE, SD1_LEVELS, "ode", []),
        (SD3, [LoraFacts(recipe=GUIDED_SDE)], {}, FILE, [1, 0.9, 0.75, 0.5, 0], "sde", []),
        (SD1, [LoraFacts("style"), FEW], {}, FILE, SD1_LEVELS, "ode", []),
        # the kind that is named goes before the file's recipe, which is not even read
        (SD1, [LoraFacts(recipe="{")], {"kind": "LCM"}, KIND, vp(999, 759, 499, 259),
         "sde", ["4 to 8 steps."]),
        (SD3, [], {"kind": "simple grid, sde"}, KIND, [1, 0.9, 0.75, 0.5, 0], "sde", []),
        (ModelFacts("sd3", "flow", 1.0), [], {"kind": "simple grid, ode"}, KIND,
         [1, 0.75, 0.5, 0.25, 0], "ode", []),
        # the usual grid
        (SD1, [], {}, USUAL, SD1_LEVELS, "ode",
         ["Usual 4 of SD 1.x. Choose its kind under kinds."]),
        (SD3, [LoraFacts("style", strength=0.3)], {}, USUAL, [1, 0.9, 0.75, 0.5, 0], "ode",
         ["Usual 4 of SD3. Choose its kind under kinds."]),
        (SD1, [LoraFacts("x", kind="LCM")], {}, USUAL, SD1_LEVELS, "ode",
         ["Usual 4 of SD 1.x. Its metadata says LCM: choose that under kinds."]),
        (SDXL_V, [], {}, USUAL, list(SDXL_V_RECIPE.sigmas), "ode",
         ["Usual 4 of SDXL. Choose its kind under kinds."]),
    ],
)  # fmt: skip
def test_what_is_in_force(facts, loras, asked, origin, levels, solver, notes):
    found = asked_of(facts, *loras, **asked)
    assert found.origin == origin
    assert found.plan.sigmas.tolist() == pytest.approx(levels, rel=1e-3)
    assert found.recipe.sigmas == pytest.approx(levels, rel=1e-3)
    assert found.plan.solver == found.recipe.solver == solver
    assert found.plan.guidance_scale == found.recipe.guidance_scale
    assert list(found.notes) == notes


def test_guidance_is_the_recipes():
    assert asked_of(SD3, LoraFacts(recipe=GUIDED_SDE)).plan.guidance_scale == 2.5
    for kind in KNOWN_STUDENTS.values():
        if "sdxl" in kind.families:
            found = asked_of(ModelFacts("sdxl", "eps"), kind=kind.name)
            assert found.plan.guidance_scale == 1.0
            assert found.notes == ((kind.hint,) if kind.hint else ())


# Which levels


@pytest.mark.parametrize(
    ("asked", "levels", "note"),
    [
        ({"steps": 4}, SD1_LEVELS, None),
        ({"steps": 2}, vp(999, 499), "trained for 4 steps; 2 follow the same spacing"),
        ({"denoise": 0.55}, vp(499, 249), "Denoise 0.55 .* 2 of 4 steps, which is 0.5"),
        ({"denoise": 0.6, "exact": True}, vp(599, 499, 249), None),
    ],
)
def test_steps_and_denoise_of_a_file(asked, levels, note):
    found = asked_of(SD1, FEW, **asked)
    assert found.plan.sigmas.tolist() == pytest.approx(levels, rel=1e-3)
    assert torch.equal(found.plan.sigmas, plan(SD1_RECIPE, **asked).sigmas)
    assert len(found.notes) == (note is not None)
    if note is not None:
        assert re.search(note, found.notes[0])


def test_a_kind_has_its_makers_own_grid_at_any_number_of_steps():
    found = asked_of(SD1, kind="LCM", steps=8, denoise=0.5)
    expected = KNOWN_STUDENTS["LCM"].recipe("sd1", "eps", num_steps=8)
    assert found.recipe == expected
    assert list(expected.timesteps) == pytest.approx(
        [999, 879, 759, 639, 499, 379, 259, 139], abs=2e-3
    )
    assert found.plan.sigmas.tolist() == pytest.approx(expected.sigmas[4:], rel=1e-5)
    assert found.notes == (
        "4 to 8 steps.",
        "Denoise 0.5 starts at the nearest trained level: 4 of 8 steps, which is 0.5.",
    )


# What is said


def test_notes_come_in_the_order_of_their_weight():
    other = LoraFacts("other", SD1_RECIPE, 0.5)
    found = asked_of(SD1, dataclasses.replace(FEW, strength=0.7), other, steps=2)
    assert found.notes == (
        "few and other are both few-step LoRAs and do the same work twice: take one off.",
        "few is at strength 0.7; it was trained for 1.0, where its steps and noise levels are "
        "right. A little less mostly draws as well, with more variety.",
        "other is at strength 0.5; it was trained for 1.0, where its steps and noise levels are "
        "right. So much less is too little for its few steps.",
        "The LoRA was trained for 4 steps; 2 follow the same spacing, which it has not seen. Fewer "
        "steps lose variety and detail.",
    )
    assert found.plan.note == "\n".join(found.notes)


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ([FEW, LoraFacts("style")], None),
        ([FEW, LoraFacts("lcm", kind="LCM")], "few and lcm are both few-step LoRAs"),
        ([LoraFacts("lcm", kind="LCM"), FEW], "lcm and few are both few-step LoRAs"),
        ([FEW, LoraFacts("few2", "{")], "few and few2 are both"),  # only the first is read
        ([LoraFacts(recipe=SD1_RECIPE), LoraFacts(recipe="{")],
         "There are two few-step LoRAs on this model, which do the same work twice: take one off"),
    ],
)  # fmt: skip
def test_two_few_step_loras_are_said(loras, said):
    notes = asked_of(SD1, *loras).notes
    assert len(notes) == (said is not None)
    assert said is None or notes[0].startswith(said)


@pytest.mark.parametrize("strength", [None, 1.0])
def test_the_trained_or_an_unknown_strength_is_not_said(strength):
    assert asked_of(SD1, LoraFacts(recipe=SD1_RECIPE, strength=strength)).notes == ()


@pytest.mark.parametrize(
    ("recipe", "known", "said"),
    [
        (SDXL_V_RECIPE, True, None),
        (SDXL_V_RECIPE, None, None),  # the host does not know yet
        (SDXL_V_RECIPE, False, "trained with zero terminal SNR, and this model is set otherwise: "
         "turn it on."),
        (default_recipe("sdxl", "v"), True, "trained without zero terminal SNR, and this model is "
         "set otherwise: turn it off."),
    ],
)  # fmt: skip
def test_another_terminal_snr_is_said(recipe, known, said):
    facts = dataclasses.replace(SDXL_V, zero_terminal_snr=known)
    notes = asked_of(facts, LoraFacts(recipe=recipe)).notes
    assert notes == (() if said is None else (f"The LoRA was {said}",))
    bare = dataclasses.replace(WORDS, zero_terminal_snr="")
    if said is not None:
        (note,) = asked_of(facts, LoraFacts(recipe=recipe), words=bare).notes
        assert note.endswith("is set otherwise.")
    assert asked_of(None, LoraFacts(recipe=recipe)).notes == ()


def test_the_end_of_a_flow_is_no_matter():
    facts = dataclasses.replace(SD3, zero_terminal_snr=True)
    assert asked_of(facts, LoraFacts(recipe=SD3_RECIPE)).notes == ()


def test_a_known_kind_is_named_for_a_host_that_sets_nothing():
    note = kind_note(LoraFacts("x", kind="LCM"), WORDS)
    assert note == "x has no recipe. Its metadata says LCM: choose that under kinds."
    assert kind_note(LoraFacts(kind="LCM"), WORDS).startswith("The LoRA has no recipe.")


# What is refused


@pytest.mark.parametrize(
    ("facts", "loras", "asked", "error", "message"),
    [
        (SD3, [FEW], {}, LoraError, r"few was made for SD 1\.x, but the model is SD3\. A LoRA"),
        (ModelFacts("", "eps"), [FEW], {}, LoraError, "model is of another family"),
        (ModelFacts("sdxl", "eps"), [LoraFacts(recipe=SDXL_V_RECIPE)], {}, LoraError,
         r"The LoRA was made for a model of v-prediction, .* predicts eps.*\. Say v\.$"),
        (ModelFacts("sd1", "v"), [FEW], {}, LoraError, r"checkpoint it was made for\.$"),
        (ModelFacts("sd1", ""), [FEW], {}, LoraError, "is set to sample in another way"),
        (SD1, [LoraFacts(recipe="{")], {}, RecipeError, "not valid JSON"),
        (SD1, [LoraFacts(recipe='{"version": 9}')], {}, RecipeError, "version 9"),
        (SD1, [], {"kind": "DMD2 4 steps"}, SettingsError, r"made for SDXL, .* SD 1\.x"),
        (SD1, [], {"kind": "LCM", "steps": 51}, SettingsError, "51 steps"),
        (None, [], {}, SettingsError, r"^No model is loaded\. Choose one first\.$"),
        (None, [FEW], {"kind": "LCM"}, SettingsError, "No model is loaded"),
        (ModelFacts("", "flow", name="Flux"), [], {}, SettingsError,
         r"^This model is a Flux that DP-DMD sampling does not know; expected SD 1\.x, SDXL, SD3, "
         r"Anima, Z-Image\. Another sampler\.$"),
        (ModelFacts("", "flow"), [], {}, SettingsError, "^This model is of a kind that DP-DMD"),
        (ModelFacts("sdxl", ""), [], {}, SettingsError,
         r"^This SDXL model is set to sample in a way .* EDM or LCM\)\. Take it off\.$"),
        (SD1, [FEW], {"steps": 129}, SettingsError, "129 steps were asked for"),
        (SD1, [FEW], {"denoise": 0.0}, SettingsError, "expected more than 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(facts, loras, asked, error, message):
    with pytest.raises(error, match=message):
        asked_of(facts, *loras, **asked)


def test_a_recipe_for_another_model_is_refused_with_names():
    with pytest.raises(LoraError, match=r"x\.safetensors was made for SD3, but the model is SD 1"):
        check_model(SD3_RECIPE, SD1, WORDS, "x.safetensors")
    with pytest.raises(LoraError, match="made for SD3, but the model is of another family"):
        check_model(SD3_RECIPE, ModelFacts("", "flow"), WORDS)
    named = dataclasses.replace(SDXL_V_RECIPE, teacher_name="noob")
    with pytest.raises(LoraError, match=r"v-prediction, .* predicts eps.*made for \(noob\)"):
        check_model(named, ModelFacts("sdxl", "eps"), WORDS)


def test_a_recipe_is_held_against_a_model_before_the_lora_is_loaded():
    check_model(SD1_RECIPE, SD1, WORDS)
    with pytest.raises(LoraError, match=r"^few\.safetensors was made for SD 1\.x"):
        check_model(SD1_RECIPE, SD3, WORDS, "few.safetensors")


# What a file says of itself


@pytest.mark.parametrize(
    ("metadata", "filename", "expected"),
    [
        ({}, "", LoraFacts()),
        ({METADATA_KEY: "{"}, "", LoraFacts(recipe="{")),
        ({METADATA_KEY: 7}, "", LoraFacts()),
        ({"modelspec.title": "lcm-lora-sdxl", "other": 1}, "", LoraFacts(kind="LCM")),
        ({"modelspec.title": "Hyper-SD 4 steps"}, "hyper-8steps", LoraFacts()),
        ({METADATA_KEY: "{", "ss_output_name": "lcm"}, "", LoraFacts(recipe="{", kind="LCM")),
    ],
)
def test_metadata_say_the_recipe_and_the_kind(metadata, filename, expected):
    assert LoraFacts.of(metadata, filename) == expected


def test_reading_a_recipe_keeps_the_rest():
    lora = LoraFacts("few", SD1_RECIPE.to_json(), 0.5, "LCM")
    assert lora.read() == LoraFacts("few", SD1_RECIPE, 0.5, "LCM")
    assert LoraFacts("style").read() == LoraFacts("style")
    with pytest.raises(RecipeError, match="not valid JSON"):
        LoraFacts(recipe="{").read()


# The base model's part


@pytest.mark.parametrize(
    ("asked", "count", "guidance"),
    [
        (AskedAnchor(), 0, 7.5),
        (AskedAnchor(GUIDED, 5, 3.0), 5, 3.0),
        (AskedAnchor(ONE_PLAIN), 1, 1.0),
        (AskedAnchor(ONE_PLAIN, 5, 3.0), 1, 3.0),
    ],
)
def test_who_walks_first_and_how(asked, count, guidance):
    assert (asked.count, asked.guidance_for(SD1_RECIPE)) == (count, guidance)


# Both hosts


def by_comfyui(recipe: Recipe | None, asked: Asked, strength: float, model: Recipe) -> Resolved:
    there = comfy_host.Model(model)
    if recipe is not None:
        there.attachments["dpdmd_recipe"] = recipe.to_json()
        there.attachments["dpdmd_strength"] = strength
    return comfy_recipes.find_recipe(there, None, asked)


def by_webui(recipe: Recipe | None, asked: Asked, strength: float, model: Recipe) -> Resolved:
    """A generation of the web UI, with the LoRA in its prompt or the kind in its accordion."""
    p, kind = SimpleNamespace(), asked.kind
    generation.tell(p, generation.Told(kind=kind))
    facts = ModelFacts(model.family, model.prediction, model.shift, model.zero_terminal_snr)
    loras = [] if recipe is None else [LoraFacts("The LoRA", recipe, strength)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webui_models, "model_facts", lambda sigmas=None: facts)
        patch.setattr(generation, "active_loras", lambda: loras)
        return generation.resolved(p, torch.ones(1), dataclasses.replace(asked, kind=""))


ANY = [None, SD1_RECIPE, SDXL_V_RECIPE, SD3_RECIPE, GUIDED_SDE, default_recipe("sdxl", "v")]
MODELS = [SD1_RECIPE, SDXL_V_RECIPE, SD3_RECIPE, default_recipe("sdxl", "eps")]
WANTED = [AS_TRAINED, Asked(steps=2), Asked(denoise=0.5), Asked(steps=8, denoise=0.3, exact=True)]
WANTED += [Asked(kind, steps=8, denoise=0.5) for kind in ("LCM", "DMD2 4 steps")]


OWN = re.compile("No recipe|No LoRA is on this")
"""Beginnings of notes that each host has in words of its own: a WebUI says nothing of no LoRA."""


@pytest.mark.parametrize("asked", WANTED)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", ANY)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_both_hosts_give_the_same_plan_and_notes_for_the_same_facts(
    tmp_path, monkeypatch, recipe, asked, strength, model
):
    comfy_host.install(monkeypatch, tmp_path)
    found: list[Any] = []
    for host in (by_comfyui, by_webui):
        try:
            got = host(recipe, asked, strength, model)
        except (LoraError, SettingsError) as error:
            found.append(str(error).partition(" If it is that checkpoint")[0])
            continue
        plain = [note.partition(": put ModelSampling")[0].rstrip(".") for note in got.notes]
        notes = [note.replace("checkpoint", "MODEL") for note in plain if not OWN.match(note)]
        facts = (got.origin, got.recipe, got.plan.guidance_scale, got.plan.solver, notes)
        found.append((*facts, got.plan.sigmas.tolist()))
    assert found[0] == found[1]


def test_every_host_has_a_word_for_everything():
    for words in (comfy_recipes.WORDS, ANCHORED_WORDS, generation.WORDS):
        for text in (words.model, words.kinds, words.other_family, words.other_sampling):
            assert text
        assert words.no_recipe.format(steps=4, family="SDXL", advice="Choose.") is not None
        assert "{" not in words.zero_terminal_snr.format(wanted="on")
