"""What the web UI's accordion makes of a prompt, without a web UI."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dpdmd_studio.core.errors import RecipeError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.known_students import KNOWN_STUDENTS
from dpdmd_studio.core.recipe.recipe import METADATA_KEY
from dpdmd_studio.core.recipe.resolve import Asked, LoraFacts, ModelFacts
from dpdmd_studio.webui_extension.host import loras, models, page, scripts
from dpdmd_studio.webui_extension.sampling import accordion, generation, infotext
from dpdmd_studio.webui_extension.sampling.auto_setup import (
    FROM_FILE,
    Choices,
    Setup,
    look,
    tags,
)
from dpdmd_studio.webui_extension.sampling.generation import Anchor, Told, lora_in, told
from safetensors.torch import save_file

SD1 = ModelFacts("sd1", "eps")
FILES = {
    name: Path(f"/loras/{name}.safetensors") for name in ("few", "other", "style", "broken", "lcm")
}
RECIPES = {
    FILES["few"]: default_recipe("sd1", "eps"),
    FILES["other"]: default_recipe("sd1", "eps", num_steps=8),
}
KINDS = {FILES["lcm"]: "LCM"}


def read(path: Path):
    if path == FILES["broken"]:
        raise RecipeError("The sampling recipe has version 99.")
    return LoraFacts(recipe=RECIPES.get(path), kind=KINDS.get(path, ""))


def found(*prompts: str, facts: ModelFacts | None = SD1, **choices: Any) -> Setup:
    return look(prompts, facts, Choices(**choices), read=read, find=FILES.get)


@pytest.mark.parametrize(
    ("text", "strength"),
    [
        ("<lora:few:1>", 1.0),
        ("<lora:few>", 1.0),
        ("<LORA:few:.5>", 0.5),
        ("<lora:few:1:0.25>", 0.25),
        ("<lora:few:te=1:unet=.75>", 0.75),
        ("<lora:few:te=.5>", 0.5),
        ("<lora:few:soft>", 1.0),
    ],
)
def test_the_strength_of_a_tag_is_that_of_the_denoiser(text, strength):
    assert tags(f"a cat {text}, blue") == [LoraFacts("few", strength=strength)]


def test_a_prompt_without_a_few_step_lora_changes_nothing():
    assert found("a cat") == found("a cat <lora:style:1> <lora:unknown:1>") == Setup()
    assert Setup().describe() == ""


def test_the_recipe_of_the_prompts_lora_is_taken():
    setup = found("a cat <lora:style:.8> <lora:few:1>", "another")
    assert setup == Setup(RECIPES[FILES["few"]], ("few",))
    assert setup.describe() == "few: 4 steps, CFG 1"


def test_two_few_step_loras_and_strengths_are_told():
    setup = found("<lora:few:.7> <lora:other:1>")
    assert setup.recipe == RECIPES[FILES["few"]] and setup.loras == ("few", "other")
    twice, weak = setup.notes
    assert "few and other are both few-step LoRAs" in twice
    assert "few is at strength 0.7" in weak


@pytest.mark.parametrize("facts", [ModelFacts("sdxl", "eps"), ModelFacts("", "eps")])
def test_a_lora_of_another_family_sets_nothing_and_says_so(facts):
    setup = found("<lora:few:1>", facts=facts)
    assert setup.recipe is None and "few was made for SD 1.x" in setup.notes[0]


def test_a_newer_recipe_sets_nothing_and_says_so():
    setup = found("<lora:broken:1>")
    assert setup.recipe is None and setup.notes == ("broken: The sampling recipe has version 99.",)


def test_before_a_checkpoint_is_loaded_the_recipe_is_taken_as_it_is():
    assert found("<lora:few:1>", facts=None).recipe == RECIPES[FILES["few"]]


def test_a_known_lora_of_another_maker_is_named_and_sets_nothing():
    assert found("<lora:lcm:1>", "<lora:style:1>") == Setup(
        notes=(
            "lcm has no recipe. Its metadata says LCM: choose that under Kind of few-step LoRA.",
        )
    )
    both = found("<lora:lcm:.5> <lora:few:1>")
    assert both.recipe == RECIPES[FILES["few"]] and both.loras == ("lcm", "few")
    assert both.notes == (
        "lcm and few are both few-step LoRAs and do the same work twice: take one off.",
    )


def test_a_kind_of_another_maker_needs_to_know_which_lora_it_is():
    alone = found("<lora:style:1>", kind="LCM")
    assert alone.recipe is not None and alone.recipe.solver == "sde"
    assert alone.describe() == "style: 4 steps, CFG 1, re-noising"
    several = found("<lora:style:1> <lora:few:1>", kind="LCM")
    assert several.recipe is None and "found: style, few" in several.notes[0]
    named = found("<lora:style:1> <lora:few:1>", kind="LCM", lora="style")
    assert named.loras == ("style",) and named.recipe == alone.recipe
    assert "found: none" in found("a cat", kind="LCM").notes[0]
    assert "No checkpoint" in found("<lora:style:1>", kind="LCM", facts=None).notes[0]


def test_a_kind_for_another_family_is_told():
    setup = found("<lora:style:1>", kind="DMD2 4 steps")
    assert setup.recipe is None and "DMD2 4 steps was made for SDXL" in setup.notes[0]


def test_what_the_script_says_reaches_the_sampler_but_no_anchor_the_second_pass():
    p = SimpleNamespace(is_hr_pass=False)
    anchor = Anchor(("few",), 7, 4.5)
    assert told(p) == Told() and generation.anchor_of(p) is None
    generation.tell(p, Told(RECIPES[FILES["few"]], anchor, "xformers"))
    assert told(p).recipe == RECIPES[FILES["few"]] and generation.anchor_of(p) == anchor
    assert told(p).attention == "xformers"
    p.is_hr_pass = True
    assert generation.anchor_of(p) is None
    generation.tell(p, Told())
    assert told(p).recipe is None


def test_anchors_are_named_in_words():
    assert Anchor((), 0, 4.5).describe() == "trained steps at CFG 4.5"
    assert Anchor((), 1, 1.0).describe() == "1 step at CFG 1"
    assert Anchor((), 7, 3.0).describe() == "7 steps at CFG 3"


# What the accordion asks for


def test_the_accordions_values_are_kept_within_its_controls(monkeypatch):
    monkeypatch.setattr(page, "option", lambda name, default: default)
    assert accordion.choices_of(()) == Choices()
    wild = accordion.choices_of((1, "no such kind", None, "no such way", 500, -2.0, "other"))
    assert wild == Choices(anchor_steps=200)
    choices = accordion.choices_of((False, "LCM", " lcm ", "guided steps", 3, 2.5, "xformers"))
    assert choices == Choices(False, "LCM", "lcm", "guided steps", 3, 2.5, "xformers")


@pytest.mark.parametrize(
    ("choices", "plotted", "expected"),
    [
        (Choices(), 3.0, None),
        (Choices(anchor="guided steps"), 0.0, Anchor(("few",), 0, 7.5)),
        (Choices(anchor="guided steps", anchor_steps=3, base_guidance=2.0), 0.0,
         Anchor(("few",), 3, 2.0)),
        (Choices(anchor="guided steps", base_guidance=2.0), 5.0, Anchor(("few",), 0, 5.0)),
        (Choices(anchor="one plain step", anchor_steps=3), 0.0, Anchor(("few",), 1, 1.0)),
        (Choices(anchor="one plain step", base_guidance=2.0), 0.0, Anchor(("few",), 1, 2.0)),
    ],
)  # fmt: skip
def test_the_base_models_part_follows_the_accordion(choices, plotted, expected):
    setup = Setup(RECIPES[FILES["few"]], ("few",))
    assert accordion.anchor_for(setup, choices, plotted) == expected
    assert accordion.anchor_for(Setup(), choices, plotted) is None


def test_a_kind_is_set_and_sampled_on_its_makers_grid(monkeypatch):
    """At the number of steps that a plot sets, too."""
    monkeypatch.setattr(page, "option", lambda name, default: default)
    monkeypatch.setattr(models, "model_facts", lambda sigmas=None: SD1)
    monkeypatch.setattr(loras, "lora_path", lambda name, fresh=False: FILES[name])
    p = SimpleNamespace(prompt="<lora:style:1>", styles=[], extra_generation_params={})
    p.all_prompts = [p.prompt]
    monkeypatch.setattr(scripts, "prompts_of", lambda p: p.all_prompts)
    accordion.set_up(p, Choices(kind="LCM"))
    assert (p.steps, p.cfg_scale, p.sampler_name) == (4, 1.0, "DP-DMD")
    assert p.extra_generation_params["DP-DMD"] == "style: 4 steps, CFG 1, re-noising"
    found = generation.resolved(p, torch.ones(1), Asked(steps=8)).recipe
    assert found == KNOWN_STUDENTS["LCM"].recipe("sd1", "eps", num_steps=8)


# Files


def test_a_file_says_its_recipe_or_the_kind_of_another_maker(tmp_path):
    def written(name: str, **metadata: str) -> Path:
        save_file({"a": torch.zeros(1)}, tmp_path / name, metadata)
        return tmp_path / name

    recipe = default_recipe("sd1", "eps")
    few = written("few.safetensors", **{METADATA_KEY: recipe.to_json()})
    assert lora_in(few) == LoraFacts(recipe=recipe)
    titled = {"modelspec.title": "Hyper-SD 4 steps"}
    assert lora_in(written("hyper.safetensors", **titled)) == LoraFacts(kind="Hyper-SD 4 steps")
    assert lora_in(written("hyper_8steps.safetensors", **titled)) == LoraFacts()
    assert lora_in(written("style.safetensors")) == LoraFacts()
    (tmp_path / "old.pt").write_bytes(b"pickle")
    assert lora_in(tmp_path / "old.pt") == lora_in(tmp_path / "gone") == LoraFacts()
    with pytest.raises(RecipeError, match="not valid JSON"):
        lora_in(written("broken.safetensors", **{METADATA_KEY: "{"}))


# Infotext


@pytest.mark.parametrize(
    ("choices", "anchor", "expected"),
    [
        (Choices(), None, (True, FROM_FILE, "", "off", 0, 0.0)),
        (Choices(enabled=False), None, (False, FROM_FILE, "", "off", 0, 0.0)),
        (
            Choices(kind="LCM", lora="style"),
            Anchor((), 7, 3.5),
            (True, "LCM", "style", "guided steps", 7, 3.5),
        ),
        (Choices(), Anchor((), 0, 4.0), (True, FROM_FILE, "", "guided steps", 0, 4.0)),
        (Choices(), Anchor((), 1, 1.0), (True, FROM_FILE, "", "one plain step", 0, 1.0)),
    ],
)
def test_a_pasted_infotext_restores_the_accordion(choices, anchor, expected):
    found = "few: 4 steps, CFG 1" if choices.enabled else infotext.SWITCHED_OFF
    said = infotext.written(choices, found, anchor.describe() if anchor is not None else "")
    pasted = {"Steps": "4", **said}
    infotext.paste("", pasted)
    assert tuple(pasted[name] for name in infotext.CONTROLS) == expected


def test_a_picture_that_says_nothing_of_ours_leaves_the_accordion_alone():
    assert infotext.written(Choices(kind="LCM", lora="style"), "", "") == {}
    assert infotext.read({"Steps": "20", "DP-DMD kind": "LCM"}) == {}


# An X/Y/Z plot


def plotted(*kinds: int) -> SimpleNamespace:
    labels = ("Nothing", "Seed", "Steps", "CFG Scale", "Sampler", "Schedule type")
    axes = [SimpleNamespace(label=label) for label in labels]
    other = SimpleNamespace(args_from=1, args_to=2)
    plot = SimpleNamespace(args_from=2, args_to=14, current_axis_options=axes)
    values = [value for kind in kinds for value in (kind, "1,2", [])]
    p = SimpleNamespace(
        scripts=SimpleNamespace(selectable_scripts=[other, plot]),
        script_args=[2, "other's", *values, True, True, False],
        sampler_name="Euler", steps=20, cfg_scale=7.0, scheduler="Karras", hr_second_pass_steps=9,
    )  # fmt: skip
    return p


def test_the_axes_of_a_plot_are_found_only_where_it_runs():
    p = plotted(2, 4, 0)
    assert scripts.plotted_axes(p) == {"Steps", "Sampler", "Nothing"}
    p.script_args[0] = 1
    assert scripts.plotted_axes(p) == set()
    assert scripts.plotted_axes(SimpleNamespace(script_args={}, scripts=None)) == set()


def test_what_a_plot_varies_stays_and_other_samplers_walk_our_levels():
    p = plotted(2, 4, 0)
    scripts.set_settings(p, "DP-DMD", 4, 1.0, scripts.plotted_axes(p))
    assert (p.sampler_name, p.steps, p.cfg_scale, p.scheduler) == ("Euler", 20, 1.0, "DP-DMD")
    p = plotted(3, 5, 0)
    scripts.set_settings(p, "DP-DMD", 4, 1.0, scripts.plotted_axes(p))
    assert (p.sampler_name, p.steps, p.cfg_scale, p.scheduler) == ("DP-DMD", 4, 7.0, "Karras")
    assert p.hr_second_pass_steps == 0
    p = plotted(1, 0, 0)
    scripts.set_settings(p, "DP-DMD", 4, 1.0, scripts.plotted_axes(p))
    assert (p.sampler_name, p.steps, p.cfg_scale, p.scheduler) == ("DP-DMD", 4, 1.0, "Automatic")
