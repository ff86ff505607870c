"""The node that loads a LoRA with its recipe, on a stand-in for ComfyUI."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import comfy_host
import pytest
import torch
from comfy_host import Model, lora_tensors, write_lora
from dpdmd_studio.comfy_nodes.host import loras as host_loras
from dpdmd_studio.comfy_nodes.sampling.load_lora import LoadLora
from dpdmd_studio.comfy_nodes.sampling.recipes import find_recipe
from dpdmd_studio.core.errors import LoraError, RecipeError, SettingsError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import Recipe

SD1 = dataclasses.replace(
    default_recipe("sd1", "eps", num_steps=2), resolutions=((512, 512),), teacher_name="real.sft"
)
SD1_V = default_recipe("sd1", "v", zero_terminal_snr=True)
SDXL = default_recipe("sdxl", "eps")
SD3 = default_recipe("sd3", "flow")
SDXL_FLOW = default_recipe("sdxl", "flow", shift=2.5)


@pytest.fixture
def loras(tmp_path, monkeypatch):
    folder = tmp_path / "loras"
    folder.mkdir()
    comfy_host.install(monkeypatch, folder)
    return folder


def load(name: str, model: Model | None = None, strength: float = 1.0) -> tuple[Model, Recipe, str]:
    found = LoadLora().load(model or Model(SD1), name, strength)
    model, recipe = found["result"]
    return model, recipe, found["ui"]["text"][0]


def test_the_recipe_comes_with_the_lora_and_stays_on_the_model(loras):
    before = Model(SD1)
    model, recipe, text = load(write_lora(loras, "few.safetensors", SD1), before)
    assert recipe == SD1 and model is not before and not before.patches
    assert [patch[0] for patches in model.patches.values() for patch in patches] == [1.0, 1.0]
    assert text.startswith("few.safetensors: Euler, Simple, 2 steps, CFG 1; LoRA strength 1.0.")
    assert "Trained at 512x512. Made for real.sft." in text and "\n" not in text
    assert model.attachments["dpdmd_recipe"] == SD1.to_json()
    assert find_recipe(model).recipe == SD1


def test_a_lora_that_needs_another_beside_it_says_so(loras):
    needed = {"name": "style.safetensors", "strength": 0.8}
    text = json.dumps({**json.loads(SD1.to_json()), "merged_loras": [needed]})
    _, _, said = load(write_lora(loras, "few.safetensors", text))
    assert "Use it together with style.safetensors at 0.8." in said


def test_a_style_lora_on_top_keeps_the_recipe_whoever_loaded_the_first(loras):
    style = write_lora(loras, "style.safetensors")
    few, _, _ = load(write_lora(loras, "few.safetensors", SD1), strength=0.5)
    by_core = Model(SD1).with_recipe(SD1)
    for model, strengths in ((few, [0.5, 0.7]), (by_core, [0.7])):
        styled, recipe, text = load(style, model, 0.7)
        assert recipe == SD1 and find_recipe(styled).recipe == SD1
        assert "style.safetensors is on. The recipe is that of the few-step LoRA under it" in text
        assert [patch[0] for patch in styled.patches["first.weight"]] == strengths
    assert "strength 0.7" not in load(style, few, 0.7)[2]  # a style LoRA may have any
    assert "strength 0.5" in load(style, few, 0.7)[2]
    under_core = few.with_core_lora({"ss_output_name": "style"})
    assert find_recipe(under_core).recipe == SD1


def test_an_sdxl_that_is_a_flow_by_its_lora_is_sampled_as_one(loras):
    name = write_lora(loras, "few.safetensors", SDXL_FLOW)
    before = Model(SDXL)
    model, recipe, text = load(name, before)
    flow = model.get_model_object("model_sampling")
    assert (flow.shift, flow.multiplier) == (2.5, 1000) and before.object_patches == {}
    assert recipe == SDXL_FLOW and find_recipe(model).recipe == SDXL_FLOW
    assert "sampled as a rectified flow of shift 2.5" in text
    again, _, text = load(name, Model(SDXL_FLOW))  # by ModelSamplingSD3 already
    assert again.object_patches == {} and "sampled as" not in text
    with pytest.raises(LoraError, match=r"DP-DMD Load LoRA.*ModelSamplingSD3 with shift 2\.5"):
        find_recipe(Model(SDXL).with_recipe(SDXL_FLOW))
    with pytest.raises(LoraError, match="this model predicts flow"):
        load(write_lora(loras, "eps.safetensors", SDXL), Model(SDXL_FLOW))


def test_a_lora_without_a_recipe_takes_the_familys_grid_and_says_so(loras):
    model, recipe, text = load(write_lora(loras, "style.safetensors"))
    assert recipe == default_recipe("sd1", "eps")
    assert text.startswith("No recipe: ") and "usual 4-step grid of SD 1.x" in text
    assert "load it with DP-DMD Load LoRA" in text
    assert "dpdmd_recipe" not in model.attachments


def test_another_strength_than_the_trained_one_is_said_at_loading_and_at_sampling(loras):
    model, _, text = load(write_lora(loras, "few.safetensors", SD1), strength=0.6)
    assert text.count("The LoRA is at strength 0.6; it was trained for 1.0") == 1
    assert "strength 0.6" in find_recipe(model).plan.note
    again, _, _ = load(write_lora(loras, "few.safetensors", SD1))
    assert find_recipe(again).plan.note == ""


def test_the_strength_at_the_core_loader_is_said_where_one_lora_lies_on_the_model(loras):
    model = Model(SD1).with_recipe(SD1)
    first, last = ("first.weight", (0.6, None)), ("last.weight", (0.6, None))
    cases = [
        ([first, last], True),
        ([("first.weight", (1.0, None)), ("last.weight", (1.0, None))], False),
        ([first, ("last.weight", (0.3, None))], False),  # two LoRAs on different weights
        ([first, first], False),  # one above the other: which is the style?
        ([], False),
    ]
    for patches, is_said in cases:
        model.patches = {}
        for key, patch in patches:
            model.patches.setdefault(key, []).append(patch)
        assert ("at strength 0.6" in find_recipe(model).plan.note) is is_said, patches
    style = Model(SD1)
    style.patches = {first[0]: [first[1]]}
    assert find_recipe(style, SD1).plan.note == ""  # the recipe came by wire


def test_two_few_step_loras_on_a_model_are_said_whoever_loaded_them(loras):
    few = write_lora(loras, "few.safetensors", SD1)
    for before in (load(few)[0], Model(SD1).with_recipe(SD1)):
        assert load(few, before)[2].count("two few-step LoRAs on this MODEL") == 1
    other = dataclasses.replace(SD1, teacher_name="other")
    by_core = load(few)[0].with_recipe(other)
    found = find_recipe(by_core)
    assert found.recipe == SD1 and "two few-step LoRAs" in found.plan.note
    assert "two few-step" not in find_recipe(load(few)[0]).plan.note


# Refusals


@pytest.mark.parametrize(
    ("recipe", "model", "message"),
    [
        (SDXL, SD1, r"few\.safetensors was made for SDXL, but the model is SD 1\.x.*own family"),
        (SD1, SD3, r"few\.safetensors was made for SD 1\.x, but the model is SD3"),
        (SD1_V, SD1, r"v-prediction.*predicts eps.*ModelSamplingDiscrete with v_prediction"),
        (SD1, SD1_V, r"eps-prediction.*predicts v.*ModelSamplingDiscrete with eps"),
    ],
)
def test_another_family_or_prediction_is_refused(loras, recipe, model, message):
    with pytest.raises(LoraError, match=message):
        load(write_lora(loras, "few.safetensors", recipe), Model(model))


def test_a_lora_of_another_family_without_a_recipe_is_refused_by_its_names(loras):
    tensors = {
        "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": torch.ones(1, 4),
        "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight": torch.ones(4, 1),
    }
    name = write_lora(loras, "three.safetensors", None, tensors)
    with pytest.raises(LoraError, match=r"three\.safetensors was made for SD3, .* model is SD 1"):
        load(name)


def test_a_recipe_of_a_newer_version_or_a_broken_one_is_refused(loras):
    newer = json.dumps({**json.loads(SD1.to_json()), "version": 2})
    with pytest.raises(RecipeError, match=r"version 2, and this program reads version 1\. Update"):
        load(write_lora(loras, "newer.safetensors", newer))
    with pytest.raises(RecipeError, match="not valid JSON"):
        load(write_lora(loras, "broken.safetensors", "{"))
    growing = json.dumps({**json.loads(SD1.to_json()), "sigmas": [1, 2, 0]})
    with pytest.raises(RecipeError, match="sigmas must decrease"):
        load(write_lora(loras, "growing.safetensors", growing))


def test_files_that_are_no_loras_are_refused(loras):
    with pytest.raises(SettingsError, match=r"gone\.safetensors is not among the loras.*Press R"):
        load("gone.safetensors")
    (loras / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(LoraError, match=r"old\.ckpt is not a \.safetensors file"):
        load("old.ckpt")
    name = write_lora(loras, "cut.safetensors", SD1)
    (loras / name).write_bytes((loras / name).read_bytes()[:-100])
    with pytest.raises(LoraError, match="cannot be read"):
        load(name)


def test_a_lora_that_fits_nothing_is_refused(loras):
    tensors = {"unet.nowhere.lora_A.weight": torch.ones(1, 4), "unet.nowhere.lora_B.weight":
               torch.ones(4, 1)}  # fmt: skip
    with pytest.raises(LoraError, match=r"Nothing in x\.safetensors fits this model: no name"):
        load(write_lora(loras, "x.safetensors", SD1, tensors))


def test_modules_that_the_host_does_not_know_are_counted(loras):
    tensors = lora_tensors(768, "lora_unet_a", "lora_unet_b", "lora_te_c")
    text = load(write_lora(loras, "part.safetensors", SD1, tensors))[2]
    assert "Only 2 of 4 modules of the LoRA were applied" in text


def test_a_lora_of_another_size_of_the_family_is_refused_or_counted(loras):
    text = load(write_lora(loras, "some.safetensors", SD1, lora_tensors(1024)))[2]
    assert "1 of 2 modules of the LoRA have another size than this model's" in text
    first = {key: value for key, value in lora_tensors(1024).items() if "input_blocks" in key}
    with pytest.raises(LoraError, match="1 modules have the names of this model's, and other siz"):
        load(write_lora(loras, "large.safetensors", SD1, first))
    assert "another size" not in load(write_lora(loras, "fits.safetensors", SD1))[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(SD3, "Flux"), "This MODEL is a Flux that DP-DMD sampling does not know; expected"),
        (Model(SDXL, "SDXLRefiner"), "This MODEL is a SDXLRefiner"),
        (
            Model(SDXL, "SDXL", "EDM", "V_PREDICTION", "EPS"),
            "This SDXL MODEL is set to sample in a way",
        ),
        (Model(SD1, "BaseModel", "LCM", "EPS"), "This SD 1.x MODEL is set .*Take the node off"),
        (SimpleNamespace(), r"\(SimpleNamespace\) comes from a loader that does not give"),
    ],
)
def test_models_that_are_none_of_ours_are_refused(loras, model, message):
    with pytest.raises(SettingsError, match=message):
        find_recipe(model)


def test_a_part_of_a_weight_is_compared_with_that_part():
    weight, update = torch.zeros(12, 5), comfy_host.Adapter(torch.ones(4, 2), torch.ones(2, 5))
    assert host_loras.fits(weight, (1.0, update, 1.0, (0, 4, 4), None))
    assert not host_loras.fits(weight, (1.0, update, 1.0, None, None))
    assert host_loras.fits(weight.to(torch.uint8), (1.0, update, 1.0, None, None))  # packed
    assert not host_loras.fits(weight, (1.0, ("diff", (torch.ones(5),)), 1.0, None, None))
    assert host_loras.fits(weight, (1.0, ("diff", (torch.ones(12, 5),)), 1.0, None, None))
    assert host_loras.fits(weight, (1.0, SimpleNamespace(name="loha"), 1.0, None, None))
