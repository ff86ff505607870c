"""The nodes that sample by a recipe, on a stand-in for ComfyUI."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import comfy_host
import pytest
import torch
from comfy_host import Model
from dpdmd_studio.comfy_nodes.host import models
from dpdmd_studio.comfy_nodes.host import sampling as host_sampling
from dpdmd_studio.comfy_nodes.sampling import few_step as sampling
from dpdmd_studio.core.diffusion.sampler import sample_few_step
from dpdmd_studio.core.errors import LoraError, RecipeError, SettingsError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY, Recipe

SD1 = default_recipe("sd1", "eps")
SDXL_V = default_recipe("sdxl", "v", zero_terminal_snr=True)
SD3 = default_recipe("sd3", "flow")
TWO = dataclasses.replace(default_recipe("sd3", "flow", num_steps=2), teacher_name="two")
THREE = dataclasses.replace(default_recipe("sd3", "flow", num_steps=3), teacher_name="three")
LATENT = {"samples": torch.zeros(2, 4, 4, 4), "noise_mask": torch.ones(1), "batch_index": [3, 4]}


@pytest.fixture(autouse=True)
def comfy(tmp_path, monkeypatch):
    return comfy_host.install(monkeypatch, tmp_path)


def make(model: Model, steps: int = 0, denoise: float = 1.0, recipe: Recipe | None = None) -> Any:
    found = sampling.Sampler().make(model, steps, denoise, recipe)
    sampler, sigmas, cfg = found["result"]
    text = found["ui"]["text"][0]
    return SimpleNamespace(sampler=sampler, sigmas=sigmas, cfg=cfg, text=text)


# Where the recipe comes from


def test_the_wire_goes_before_our_loader_and_that_before_the_core_loader():
    model = Model(SD3).with_recipe(TWO)
    assert len(make(model).sigmas) == 3
    model.attachments[models.RECIPE_ATTACHMENT] = THREE.to_json()
    assert len(make(model).sigmas) == 4
    assert len(make(model, recipe=SD3).sigmas) == 5
    assert "No recipe" not in make(model).text


@pytest.mark.parametrize("recipe", [SD1, SDXL_V, SD3, default_recipe("sd3", "flow", shift=1.0)])
def test_without_a_recipe_the_familys_grid_is_taken_with_a_note(recipe):
    patched = Model(recipe).with_core_lora({"ss_output_name": "lcm"})
    patched.patches = {"first.weight": [(1.0, None, 1.0, None, None)]}
    said = {"No LoRA is on this MODEL": Model(recipe), "No recipe: the LoRA on this": patched}
    for words, model in said.items():
        found = make(model)
        assert found.sigmas.tolist() == pytest.approx(recipe.sigmas)
        assert found.cfg == 1.0 and found.text.splitlines()[1].startswith(words)
    assert "use DP-DMD Anchored Sampler" in found.text


def test_a_wired_recipe_that_does_not_fit_the_model_is_refused():
    with pytest.raises(LoraError, match=r"The LoRA was made for SD3, but the model is SD 1\.x"):
        make(Model(SD1), recipe=SD3)
    with pytest.raises(LoraError, match="predicts eps"):
        make(Model(default_recipe("sdxl", "eps")), recipe=SDXL_V)


def test_a_broken_or_newer_recipe_on_the_model_is_refused_and_no_grid_guessed():
    for text, message in (("{", "not valid JSON"), ('{"version": 7}', "version 7")):
        with pytest.raises(RecipeError, match=message):
            make(Model(SD1).with_core_lora({METADATA_KEY: text}))


def test_a_model_with_another_terminal_snr_is_said():
    plain = default_recipe("sdxl", "v")
    text = make(Model(plain), recipe=SDXL_V).text
    assert "trained with zero terminal SNR" in text and "with zsnr on" in text
    text = make(Model(SDXL_V), recipe=plain).text
    assert "trained without zero terminal SNR" in text and "with zsnr off" in text
    assert "terminal SNR" not in make(Model(SDXL_V), recipe=SDXL_V).text


# Levels


def test_levels_guidance_and_solver_are_the_recipes():
    guided = dataclasses.replace(SD3, guidance_scale=2.5, solver="sde")
    found = make(Model(SD3), recipe=guided)
    assert found.sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert found.sigmas.dtype == torch.float32 and found.cfg == 2.5
    assert found.sampler.solver == "sde" and found.sampler.function is sampling.few_step_sampler
    assert found.text == "4 steps, CFG 2.5, re-noising, noise levels 1 0.9 0.75 0.5 0"


def test_other_counts_and_strengths_stay_on_the_grid_and_say_so():
    found = make(Model(SD3), steps=2, recipe=SD3)
    assert found.sigmas.tolist() == pytest.approx([1, 0.75, 0])
    assert "trained for 4 steps; 2 follow the same spacing" in found.text
    found = make(Model(SD3), denoise=0.45, recipe=SD3)
    assert found.sigmas.tolist() == pytest.approx([0.75, 0.5, 0])
    assert "nearest trained level: 2 of 4 steps" in found.text
    with pytest.raises(SettingsError, match="-1 steps were asked for"):
        make(Model(SD3), steps=-1)


def test_an_exact_denoise_starts_there_and_goes_on_at_trained_levels():
    found = sampling.Sampler().make(Model(SD3), 0, 0.4, SD3, "exact level")["result"][1]
    # 40 % of the way is 3 * .4 / (1 + 2 * .4) by the shift; .5 lies below it
    assert found.tolist() == pytest.approx([2 / 3, 0.5, 0])
    low = sampling.Sampler().make(Model(SD3), 0, 0.1, SD3, "exact level")["result"][1]
    assert low.tolist() == pytest.approx([0.25, 0])
    near = sampling.Sampler().make(Model(SD3), 0, 0.1, SD3)["result"][1]
    assert near.tolist() == pytest.approx([0.5, 0])
    said = sampling.Sampler().make(Model(SD3), 0, 0.4, SD3, "exact level")["ui"]["text"][0]
    assert "Denoise 0.4 starts at exactly that level" in said and "2 evaluations" in said


def test_another_shift_on_the_model_is_said_to_change_nothing():
    assert "shift" not in make(Model(SD3).with_recipe(SD3)).text
    found = make(Model(default_recipe("sd3", "flow", shift=5.0)).with_recipe(SD3))
    assert found.sigmas.tolist() == pytest.approx(SD3.sigmas)
    assert "set to shift 5, which changes nothing here" in found.text
    assert "trained with shift 3" in found.text


# The negative prompt


def ksampled(model: Model, monkeypatch: pytest.MonkeyPatch, negative: Any) -> str:
    """What the node says; the host samples nothing."""
    monkeypatch.setattr(host_sampling, "sample", lambda *_: LATENT)
    found = sampling.KSampler().sample(model, [], LATENT, 0, 0, 1.0, negative)
    return found["ui"]["text"][0]


def test_a_negative_prompt_that_does_nothing_is_said_and_one_that_is_needed_asked_for(monkeypatch):
    model = Model(SD3).with_recipe(SD3)
    assert "negative" not in ksampled(model, monkeypatch, None)
    assert "At CFG 1 the negative prompt is not evaluated" in ksampled(model, monkeypatch, [])
    model.model_options["disable_cfg1_optimization"] = True
    assert "negative" not in ksampled(model, monkeypatch, [])
    with pytest.raises(SettingsError, match=r"Self-Attention Guidance.*none is connected"):
        ksampled(model, monkeypatch, None)


# The solver in the host's call contract


def denoiser(model: Model | None) -> Any:
    """What ComfyUI hands to samplers: callable, with the MODEL behind its guider."""

    class Denoiser:
        inner_model = SimpleNamespace(model_patcher=model)
        calls: list[float] = []  # noqa: RUF012

        def __call__(self, x, sigma, **_):
            self.calls.append(float(sigma[0]))
            return torch.tanh(x) * 0.5

    return Denoiser()


@pytest.mark.parametrize(("recipe", "flow"), [(SD1, False), (SD3, True)])
def test_fresh_noise_is_the_hosts_stream_of_the_seed(recipe, flow):
    x, sigmas = torch.ones(1, 4, 2, 2), torch.tensor(recipe.sigmas)
    network = denoiser(Model(recipe))
    found = sampling.few_step_sampler(network, x, sigmas, {"seed": 5}, solver="sde")
    expected = sample_few_step(
        network, x, sigmas, solver="sde", flow=flow,
        noise_sampler=comfy_host.default_noise_sampler(x, 5),
    )  # fmt: skip
    assert torch.equal(found, expected)
    again = sampling.few_step_sampler(network, x, sigmas, {"seed": 6}, solver="sde")
    assert not torch.equal(found, again)
    wrong = sample_few_step(
        network, x, sigmas, solver="sde", flow=not flow,
        noise_sampler=comfy_host.default_noise_sampler(x, 5),
    )  # fmt: skip
    assert not torch.allclose(found, wrong)


def test_a_model_that_cannot_be_found_is_no_flow():
    assert not host_sampling.is_flow(denoiser(None)) and not host_sampling.is_flow(object())
    assert host_sampling.is_flow(denoiser(Model(SD3)))


# The one-node way


def sampled(monkeypatch, model: Model, **changes: Any) -> tuple[dict, dict]:
    """(what the node puts out, what it asked of the host)."""
    asked = {}

    def sample(model: Model, trajectory: host_sampling.Trajectory, subject: Any) -> dict:
        asked.update(vars(subject), model=model, sigmas=trajectory.sigmas)
        asked.update(sampler=trajectory.sampler, cfg=trajectory.guidance_scale)
        return {"samples": torch.ones(1)}

    monkeypatch.setattr(host_sampling, "sample", sample)
    inputs = {"positive": "yes", "latent_image": LATENT, "seed": 7, "steps": 0, "denoise": 1.0}
    return sampling.KSampler().sample(model, **(inputs | changes)), asked


def test_all_in_one_hands_everything_to_the_host(monkeypatch):
    model = Model(SD3)
    found, asked = sampled(monkeypatch, model, recipe=TWO, negative="no")
    assert asked["model"] is model and asked["latent"] is LATENT
    assert (asked["positive"], asked["negative"], asked["seed"]) == ("yes", "no", 7)
    assert asked["cfg"] == 1.0 and asked["sigmas"].tolist() == pytest.approx(TWO.sigmas)
    assert found["result"][0]["samples"].item() == 1
    lines = found["ui"]["text"][0].splitlines()
    assert lines == ["2 steps, CFG 1, noise levels 1 0.75 0", sampling.NEGATIVE_IDLE]


def test_a_negative_prompt_is_needed_with_guidance_only(monkeypatch):
    _, asked = sampled(monkeypatch, Model(SD3), recipe=TWO)
    assert asked["negative"] is None
    guided = dataclasses.replace(TWO, guidance_scale=1.5)
    with pytest.raises(SettingsError, match=r"CFG 1\.5, and no negative prompt is connected\. Con"):
        sampled(monkeypatch, Model(SD3), recipe=guided)
    _, asked = sampled(monkeypatch, Model(SD3), recipe=guided, negative="no")
    assert asked["cfg"] == 1.5


def test_every_input_and_output_is_explained():
    for kind in sampling.NODES:
        inputs = kind.INPUT_TYPES()
        assert all(spec[1]["tooltip"] for group in inputs.values() for spec in group.values())
        assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_TOOLTIPS)
        assert set(inputs) == {"required", "optional"}
