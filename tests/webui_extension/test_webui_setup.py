"""What the web UI's accordion makes of a prompt, without a web UI."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from dpdmd_studio.core.errors import RecipeError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.known_students import KNOWN_STUDENTS
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, MergedLora
from dpdmd_studio.core.recipe.resolve import Asked, LoraFacts, ModelFacts
from dpdmd_studio.webui_extension.host import loras, models, page, scripts
from dpdmd_studio.webui_extension.sampling import accordion, generation, infotext, sampler
from dpdmd_studio.webui_extension.sampling.auto_setup import (
    FROM_FILE,
    Choices,
    Setup,
    hires_note,
    look,
    size_note,
    tags,
)
from dpdmd_studio.webui_extension.sampling.generation import Anchor, Told, lora_in, told
from safetensors.torch import save_file

SD1 = ModelFacts("sd1", "eps")
NAMES = ("few", "other", "style", "broken", "lcm", "turbo", "skipping", "with-style")
LISTED = {
    name: loras.Lora(name, Path(f"/loras/{name}.safetensors"), autov3=f"{number:012x}")
    for number, name in enumerate(NAMES, 1)
}
FILES = {name: lora.path for name, lora in LISTED.items()}
FEW = default_recipe("sd1", "eps")
RECIPES = {
    FILES["few"]: FEW,
    FILES["other"]: default_recipe("sd1", "eps", num_steps=8),
    FILES["skipping"]: replace(FEW, clip_skip=2, resolutions=((512, 512), (512, 768))),
    FILES["with-style"]: replace(
        FEW, merged_loras=(MergedLora(name="ink", strength=0.8, autov3=f"{3:012x}"),)
    ),
}
KINDS = {FILES["lcm"]: "LCM"}


def read(path: Path):
    if path == FILES["broken"]:
        raise RecipeError("The sampling recipe has version 99.")
    likely = "SDXL Turbo (extracted LoRA)" if path == FILES["turbo"] else ""
    return LoraFacts(recipe=RECIPES.get(path), kind=KINDS.get(path, ""), likely=likely)


def found(*prompts: str, facts: ModelFacts | None = SD1, **choices: Any) -> Setup:
    return look(prompts, facts, Choices(**choices), read=read, find=LISTED.get)


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
    assert setup == Setup(RECIPES[FILES["few"]], ("few",), steps=4)
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
        ),
        offered="LCM",
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
    choices = accordion.choices_of((False, "LCM", " lcm ", "guided steps", 3, 2.5, "xformers", 6))
    assert choices == Choices(False, "LCM", "lcm", "guided steps", 3, 2.5, "xformers", 6)


def test_a_program_may_send_values_of_the_wrong_kind(monkeypatch):
    monkeypatch.setattr(page, "option", lambda name, default: default)
    texts = accordion.choices_of(("false", ["LCM"], None, {}, "3", "2.5", 7, "6"))
    assert texts == Choices(enabled=False, anchor_steps=3, base_guidance=2.5, steps=6)
    none = accordion.choices_of(("perhaps", 3, None, 5, "many", float("nan"), None, [4]))
    assert none == Choices()


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
    monkeypatch.setattr(loras, "listed", lambda name, fresh=False: LISTED[name])
    p = SimpleNamespace(prompt="<lora:style:1>", styles=[], extra_generation_params={})
    p.width = p.height = 512
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
        (Choices(), None, (True, FROM_FILE, "", "off", 0, 0.0, 0)),
        (Choices(steps=6), None, (True, FROM_FILE, "", "off", 0, 0.0, 6)),
        (Choices(enabled=False), None, (False, FROM_FILE, "", "off", 0, 0.0, 0)),
        (
            Choices(kind="LCM", lora="style"),
            Anchor((), 7, 3.5),
            (True, "LCM", "style", "guided steps", 7, 3.5, 0),
        ),
        (Choices(), Anchor((), 0, 4.0), (True, FROM_FILE, "", "guided steps", 0, 4.0, 0)),
        (Choices(), Anchor((), 1, 1.0), (True, FROM_FILE, "", "one plain step", 0, 1.0, 0)),
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


# What is said before and after an image is drawn


def test_the_number_of_steps_can_be_chosen_and_what_was_not_trained_is_told():
    setup = found("<lora:few:1>", steps=6)
    assert setup.steps == 6 and setup.describe() == "few: 6 steps, CFG 1"
    assert setup.notes == (
        "The LoRA was trained for 4 steps; 6 follow the same spacing, which it has not seen. Up to "
        "twice as many mostly draw as well or better.",
    )
    lcm = found("<lora:style:1>", kind="LCM", steps=8)
    assert lcm.recipe == KNOWN_STUDENTS["LCM"].recipe("sd1", "eps", num_steps=8)
    assert lcm.describe() == "style: 8 steps, CFG 1, re-noising"


def test_a_lora_that_only_its_name_tells_is_offered():
    setup = found("<lora:turbo:1>")
    assert setup.recipe is None and setup.offered == "SDXL Turbo (extracted LoRA)"
    assert "Its name says SDXL Turbo (extracted LoRA): if it is that, choose it" in setup.notes[0]
    beside = found("<lora:turbo:1> <lora:few:1>")
    assert beside.loras == ("few",) and beside.notes == () and beside.offered == ""


def test_a_lora_at_strength_0_sets_nothing():
    setup = found("<lora:few:0>")
    assert setup == Setup(notes=("few is at strength 0, so it does nothing.",))
    other = found("<lora:few:0> <lora:other:1>")
    assert other.loras == ("other",) and other.notes == setup.notes
    assert found("<lora:style:0>", kind="LCM").recipe is None
    assert found("<lora:style:0>") == Setup()


def test_styles_that_were_merged_into_the_teacher_are_missed():
    alone = found("<lora:with-style:1>")
    assert alone.recipe is not None
    assert "ink merged at 0.8. It is missing here: add it to the prompt" in alone.notes[0]
    assert found("<lora:with-style:1> <lora:style:0.8>").notes == ()  # the same file by its hash
    (weak,) = found("<lora:with-style:1> <lora:style:0.3>").notes
    assert "ink is on at 0.3; this LoRA was made for 0.8." in weak


@pytest.mark.parametrize(
    ("size", "far"),
    [((512, 512), False), ((640, 576), False), ((512, 1024), False), ((256, 256), True),
     ((1024, 1024), True)],
)  # fmt: skip
def test_a_size_far_from_all_trained_ones_is_told(size, far):
    said = size_note(found("<lora:skipping:1>"), *size)
    assert bool(said) is far
    if far:
        assert "512x512, 512x768" in said and f"{size[0]}x{size[1]}" in said
    assert size_note(found("<lora:few:1>"), *size) == size_note(Setup(), *size) == ""


def test_a_lora_in_one_prompt_of_two_passes_is_told():
    def said(first: str, *hires: str) -> str:
        return hires_note(found(first), hires, read=read, find=LISTED.get)

    assert said("<lora:few:1>") == said("a cat") == said("a cat", "a dog") == ""
    assert said("<lora:few:1>", "sharp <lora:few:1>") == ""
    assert "few is in the hires prompt only" in said("a cat", "sharp <lora:few:1>")
    assert "few is not in the hires prompt" in said("<lora:few:1>", "sharp")


@pytest.fixture
def host(monkeypatch) -> SimpleNamespace:
    """A host that notes what it is asked; its clip skip is 2."""
    asked = SimpleNamespace(options={"CLIP_stop_at_last_layers": 2}, comments=[], can=True)
    monkeypatch.setattr(page, "option", lambda name, default: asked.options.get(name, default))
    monkeypatch.setattr(models, "model_facts", lambda sigmas=None: SD1)
    monkeypatch.setattr(loras, "listed", lambda name, fresh=False: LISTED.get(name))
    monkeypatch.setattr(loras, "can_take_loras_off", lambda: asked.can)
    monkeypatch.setattr(accordion, "lora_in", read)
    monkeypatch.setattr(scripts, "prompts_of", lambda p: [p.prompt])
    monkeypatch.setattr(scripts, "comment", lambda p, text: asked.comments.append(text))
    return asked


def generation_of(prompt: str, **more: Any) -> SimpleNamespace:
    settings = {"sampler_name": "Euler a", "steps": 20, "cfg_scale": 7.0, "width": 512}
    settings |= {"height": 512, "extra_generation_params": {}, "override_settings": {}}
    return SimpleNamespace(prompt=prompt, **(settings | more))


def test_warnings_stand_in_the_infotext_for_programs_too(host):
    p = generation_of("<lora:few:.5>", width=64, height=64, enable_hr=True, hr_prompt="sharp")
    accordion.set_up(p, Choices())
    said = p.extra_generation_params["DP-DMD notes"]
    assert "few is at strength 0.5" in said and "not in the hires prompt" in said
    assert all(f"DP-DMD: {note}" in host.comments for note in found("<lora:few:.5>").notes)
    clean = generation_of("<lora:style:1>")
    accordion.set_up(clean, Choices(kind="LCM"))
    assert "DP-DMD notes" not in clean.extra_generation_params  # a hint is no warning
    assert "DP-DMD: 4 to 8 steps." in host.comments
    wrong = generation_of("<lora:few:0>")
    accordion.set_up(wrong, Choices())
    assert wrong.steps == 20 and "strength 0" in wrong.extra_generation_params["DP-DMD notes"]


def test_the_loras_clip_skip_is_asked_of_the_host(host, monkeypatch):
    monkeypatch.setattr(scripts, "override", lambda p, name, value: p.asked.update({name: value}))
    for prompt, choices, expected in (
        ("<lora:skipping:1>", Choices(), {"CLIP_stop_at_last_layers": 2}),
        ("<lora:skipping:1>", Choices(enabled=False), {}),
        ("<lora:few:1>", Choices(), {}),
    ):
        p = generation_of(prompt, asked={})
        accordion.ask_clip_skip(p, choices)
        assert p.asked == expected
    setup = found("<lora:skipping:1>")
    assert setup.describe() == "skipping: 4 steps, CFG 1, clip skip 2"
    assert accordion.clip_note(setup) == ""
    host.options["CLIP_stop_at_last_layers"] = 1
    assert "trained with clip skip 2; this generation asks for 1" in accordion.clip_note(setup)


def test_an_option_is_overridden_for_one_generation_unless_it_is_asked_for(monkeypatch):
    module: Any = ModuleType("modules")
    module.shared = SimpleNamespace(opts=SimpleNamespace(data_labels={"known": None}))
    monkeypatch.setitem(sys.modules, "modules", module)
    for settings, more, expected in (
        ({}, {}, {"known": 2}),
        ({"known": 1}, {}, {"known": 1}),
        ({}, {"override_settings_restore_afterwards": False}, {}),
    ):
        p = SimpleNamespace(override_settings=settings, **more)
        scripts.override(p, "known", 2)
        scripts.override(p, "unknown", 2)
        assert p.override_settings == expected


# Second passes


def test_the_base_models_guidance_is_there_for_the_prompts_and_gone_before_sampling(host):
    p = generation_of("<lora:few:1>")
    accordion.set_up(p, Choices(anchor="guided steps", base_guidance=4.0))
    assert p.cfg_scale == 1.0
    accordion.prepare_guidance(p)
    assert p.cfg_scale == 4.0 and generation.anchor_of(p) == Anchor(("few",), 0, 4.0)
    sampler._own_guidance(p)
    assert p.cfg_scale == 1.0
    p.sampler_name = "Euler"  # of a plot
    accordion.prepare_guidance(p)
    assert p.cfg_scale == 1.0


def test_an_image_of_a_plot_says_nothing_of_the_one_before(host):
    said: dict = {"Denoising strength": 0.5}
    first = generation_of("<lora:few:0.5>", extra_generation_params=said)
    accordion.set_up(first, Choices(anchor="guided steps", steps=6))
    assert {infotext.FOUND, infotext.ANCHORED, infotext.STEPS, infotext.NOTES} <= said.keys()
    said[infotext.IMAGE_STEPS] = "1 of 4"
    accordion.set_up(generation_of("a cat", extra_generation_params=said), Choices())
    assert said == {"Denoising strength": 0.5}


def test_a_lora_of_a_demo_checkpoint_is_said_to_fit_no_other():
    recipe = replace(FEW, teacher_name="emoji-sd1")
    of_demo = LoraFacts("few", recipe=recipe)
    setup = look(["<lora:few:1>"], None, Choices(), read=lambda path: of_demo, find=LISTED.get)
    assert "cannot load, and fits no other" in setup.notes[0]
    assert not any("demo" in note for note in found("<lora:few:1>").notes)


def test_another_sampler_of_a_plot_is_not_said_to_be_anchored(host, monkeypatch):
    monkeypatch.setattr(scripts, "plotted_axes", lambda p: {"Sampler"})
    for name, anchored in (("DP-DMD", True), ("Euler", False)):
        p = generation_of("<lora:few:1>", sampler_name=name)
        accordion.set_up(p, Choices(anchor="guided steps"))
        assert (generation.anchor_of(p) is not None) is anchored
        assert (infotext.ANCHORED in p.extra_generation_params) is anchored
        said = p.extra_generation_params.get(infotext.NOTES, "")
        assert ("Only the sampler DP-DMD anchors" in said) is not anchored


def test_a_copy_of_a_generation_is_not_anchored_but_of_the_same_kind(host):
    p = generation_of("<lora:style:1>")
    accordion.set_up(p, Choices(kind="LCM", anchor="guided steps"))
    later = copy.copy(p)
    assert generation.anchor_of(p) is not None and generation.anchor_of(later) is None
    assert told(later).kind == "LCM" and told(later).recipe == told(p).recipe


def test_a_pass_of_another_extension_knows_the_kind_by_the_lora(host, monkeypatch):
    on = [loras.Lora("style", FILES["style"])]
    monkeypatch.setattr(loras, "active_loras", lambda: on)
    monkeypatch.setattr(generation, "lora_in", read)
    p = generation_of("<lora:style:1>")
    accordion.set_up(p, Choices(kind="LCM"))
    detail = SimpleNamespace()
    found = generation.resolved(detail, torch.ones(1), Asked(steps=8)).recipe
    assert found == KNOWN_STUDENTS["LCM"].recipe("sd1", "eps", num_steps=8)
    on.append(loras.Lora("few", FILES["few"]))  # what a file says comes first
    assert generation.resolved(detail, torch.ones(1)).recipe == FEW
    accordion.set_up(generation_of("<lora:style:1>"), Choices())
    del on[1:]
    assert generation.resolved(detail, torch.ones(1)).recipe.solver == "ode"


def test_a_detailers_pass_keeps_its_own_settings(host):
    p = generation_of("<lora:few:1>", _ad_inner=True, steps=9, cfg_scale=3.0)
    accordion.ask_clip_skip(p, Choices())
    accordion.set_up(p, Choices(anchor="guided steps"))
    accordion.prepare_guidance(p)
    assert (p.sampler_name, p.steps, p.cfg_scale) == ("Euler a", 9, 3.0)
    assert told(p).recipe == FEW and generation.anchor_of(p) is None


# The accordion


def test_the_title_says_what_is_in_force(host):
    def shown(prompt: str, *values: object) -> list[Any]:
        return accordion.show(prompt, *values)

    said, title, offer, send = shown("a cat")
    assert title["label"] == accordion.TITLE and not offer["visible"] and not send["visible"]
    _, title, _, send = shown("<lora:few:1>")
    assert title["label"] == f"{accordion.TITLE}: sampler DP-DMD, 4 steps, CFG 1"
    assert send["visible"]
    anchored = (True, FROM_FILE, "", "guided steps", 3, 2.0)
    assert shown("<lora:few:1>", *anchored)[1]["label"].endswith("anchored: 3 steps at CFG 2")
    host.can = False
    said, title, _, _ = shown("<lora:few:1>", *anchored)
    assert "anchored" not in title["label"] and "cannot take one LoRA off" in said
    assert shown("<lora:few:1>", False)[1]["label"].endswith(": off")
    said, title, offer, _ = shown("<lora:lcm:1>")
    assert offer["visible"] and offer["value"] == "Choose LCM"
    assert accordion.offered_kind(offer["value"])["value"] == "LCM"
    assert "value" not in accordion.offered_kind("Choose ")
    assert title["label"].endswith(": see inside")


def test_the_sliders_are_filled_with_what_will_be_set(host):
    found = accordion.slider_values("<lora:few:1>", True, FROM_FILE, "", "off", 0, 0, "", 6)
    assert [each["value"] for each in found] == ["DP-DMD", "DP-DMD", 6, 1.0]
    assert all("value" not in each for each in accordion.slider_values("a cat"))
