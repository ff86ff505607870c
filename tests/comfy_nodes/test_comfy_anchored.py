"""Anchored sampling and seed grids as ComfyUI nodes, on stand-ins for a MODEL and for the host."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from dpdmd_studio import comfy_nodes
from dpdmd_studio.comfy_nodes.host import loras, sampling
from dpdmd_studio.comfy_nodes.sampling import anchored, compare, lora_switch
from dpdmd_studio.core.diffusion.sampler import sample_few_step
from dpdmd_studio.core.errors import RecipeError, SettingsError
from dpdmd_studio.core.images.diversity import layout_vectors, sample_diversity
from dpdmd_studio.core.recipe.anchored import AskedAnchor, anchored_plan
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.few_step import plan as few_step_plan
from dpdmd_studio.core.recipe.recipe import METADATA_KEY
from dpdmd_studio.core.recipe.resolve import ModelFacts
from torch import nn

SD3 = default_recipe("sd3", "flow")
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
DEFAULTS = {
    "settings": "recipe",
    "anchor": "guided steps",
    "anchor_steps": 3,
    "base_cfg": 2.0,
    "solver": "auto",
    "steps": 0,
    "denoise": 1.0,
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)
        self.last = nn.Linear(6, 4).requires_grad_(False)

    def forward(self, x):
        hidden = torch.tanh(self.first(x)).movedim(1, -1)
        return self.last(hidden).movedim(-1, 1)


class Lora:
    """A low-rank update as ComfyUI holds it: up, down, alpha, middle, DoRA scale, new shape."""

    name = "lora"

    def __init__(self, up, down, *, dora=None) -> None:
        self.weights = (up, down, 2.0, None, dora, None)
        self.multiplier = 1.0

    def delta(self):
        up, down = self.weights[:2]
        return (up.flatten(1) @ down.flatten(1)) * 2.0 / down.shape[0]

    def h(self, x, base_out):
        up, down = self.weights[:2]
        scale = self.multiplier * 2.0 / down.shape[0]
        if down.dim() == 2:
            return nn.functional.linear(nn.functional.linear(x, down), up) * scale
        return nn.functional.conv2d(nn.functional.conv2d(x, down, padding=1), up) * scale


class Hook:
    """The host's hook: a layer's forward plus the update of its LoRA."""

    def __init__(self, module, adapter, multiplier=1.0) -> None:
        self.module, self.adapter, self.plain = module, adapter, None
        adapter.multiplier = multiplier

    def inject(self) -> None:
        self.plain = self.module.forward
        self.module.forward = lambda x: self.plain(x) + self.adapter.h(x, None)

    def eject(self) -> None:
        if self.plain is not None:
            self.module.forward, self.plain = self.plain, None


class Model:
    """A ModelPatcher: patches over a network that clones share."""

    def __init__(self, network: nn.Module) -> None:
        self.model, self.patches, self.patches_uuid = network, {}, "plain"
        self.object_patches, self.injections, self.hook_patches = {}, {}, {}
        self.attachments: dict[str, object] = {}

    def clone(self) -> Model:
        twin = copy.copy(self)
        twin.patches = {name: list(patches) for name, patches in self.patches.items()}
        twin.attachments = dict(self.attachments)
        twin.injections = dict(self.injections)
        return twin

    def get_attachment(self, key: str) -> object:
        return self.attachments.get(key)

    def patched(self, patches: dict[str, Lora], strength: float = 1.0) -> Model:
        twin = self.clone()
        for name, lora in patches.items():
            twin.patches.setdefault(name, []).append((strength, lora, 1.0, None, None))
        twin.patches_uuid = f"{self.patches_uuid}+{id(patches)}"
        return twin

    def patch(self, network: nn.Module, sign: int = 1) -> nn.Module:
        for name, patches in self.patches.items():
            weight = network.get_parameter(name)
            for strength, lora, *_ in patches:
                weight += sign * strength * lora.delta().reshape(weight.shape)
        return network

    def weights(self) -> nn.Module:
        """A network of its own with the patches in its weights."""
        return self.patch(copy.deepcopy(self.model))


def few_step_lora(seed: int = 1) -> dict[str, Lora]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "first.weight": Lora(random(6, 2, 1, 1), random(2, 4, 3, 3)),
        "last.weight": Lora(random(4, 3), random(3, 6)),
    }


@pytest.fixture
def base() -> Model:
    return Model(Network())


@pytest.fixture
def few(base) -> Model:
    return base.patched(few_step_lora(), 0.7)


class Host:
    """What the nodes ask of ComfyUI; it merges a MODEL's patches when it samples with it."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.noise: list[torch.Tensor] = []
        self.interrupt_at = -1
        self.evaluations = 0

    def sample(self, model, trajectory, subject, **progress):
        network = model.patch(model.model)
        sigmas, cfg, seed = trajectory.sigmas, trajectory.guidance_scale, subject.seed
        steps = len(sigmas) - 1
        self.calls.append({"model": model, "cfg": cfg, "steps": steps, "seed": seed, **progress})

        def denoiser(x, sigma, **_):
            if self.evaluations == self.interrupt_at:
                raise KeyboardInterrupt  # the host's own is a BaseException as well
            self.evaluations += 1
            return network(x) * cfg + subject.positive

        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(subject.latent["samples"].shape, generator=generator) * sigmas[0]
        try:
            return {"samples": trajectory.sampler(denoiser, x, sigmas)}
        finally:
            model.patch(network, -1)

    def noise_sampler(self, x, seed):
        generator = torch.Generator().manual_seed(seed + 1)

        def noise(sigma, sigma_next):
            self.noise.append(torch.randn(x.shape, generator=generator))
            return self.noise[-1]

        return noise


@pytest.fixture
def comfy(monkeypatch) -> Host:
    fake = Host()

    def euler(model, steps, guidance_scale):
        def sampler(model, x, sigmas):
            return sample_few_step(model, x, sigmas)

        return sampling.Trajectory(sampler, torch.linspace(1, 0, steps + 1), guidance_scale)

    replaced = {
        "sampling.sample": fake.sample,
        "sampling.noise_sampler": fake.noise_sampler,
        "sampling.on_console": lambda function: function,
        "sampling.sampler_object": lambda function, options: lambda *a: function(*a, **options),
        "loras.bypass_hook": lambda: Hook,
        "models.model_facts": lambda model: ModelFacts("sd3", "flow", 3.0),
        "sampling.core_trajectory": euler,
        "sampling.is_flow": lambda model: True,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(f"dpdmd_studio.comfy_nodes.host.{name}", value)
    return fake


def run(base, few, *, seed=5, negative=0.0, recipe=SD3, **changes):
    settings = {**DEFAULTS, **changes}
    found = anchored.AnchoredSampler().sample(
        base, few, 0.1, LATENT, seed, negative=negative, recipe=recipe, **settings
    )
    return found["result"][0]["samples"], found["ui"]["text"][0]


def by_hand(base, few, cfg=2.0, steps=3, seed=5) -> torch.Tensor:
    """Both parts with two networks whose weights are merged."""
    plan = anchored_plan(SD3, few_step_plan(SD3), AskedAnchor(steps=steps))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    teacher, student = base.weights(), few.weights()
    x = sample_few_step(lambda x, sigma: teacher(x) * cfg + 0.1, x, plan.base_sigmas)
    return sample_few_step(lambda x, sigma: student(x) + 0.1, x, plan.student_sigmas)


def is_clean(model: Model) -> bool:
    return not any("forward" in vars(layer) for layer in model.model.modules())


def test_hooks_on_one_model_and_two_patched_models_draw_the_same(comfy, base, few, monkeypatch):
    hooked, note = run(base, few)
    assert "switched on in 2 layers" in note
    assert [call["model"].patches_uuid for call in comfy.calls] == ["plain", "plain"]
    monkeypatch.setattr(loras, "bypass_hook", lambda: None)
    patched, note = run(base, few)
    assert "Weights are patched twice an image: this ComfyUI has no bypass form" in note
    assert [call["model"] for call in comfy.calls[2:]] == [base, few]
    expected = by_hand(base, few)
    torch.testing.assert_close(patched, expected)
    torch.testing.assert_close(hooked, expected)
    assert (hooked - by_hand(base, base)).abs().max() > 0.1  # the LoRA does something
    assert is_clean(base)


def test_style_loras_stay_on_in_both_parts(comfy, base):
    styled = base.patched(few_step_lora(seed=9))
    few = styled.patched(few_step_lora())
    hooked, note = run(styled, few)
    assert "switched on in 2 layers" in note
    torch.testing.assert_close(hooked, by_hand(styled, few), rtol=0, atol=1e-4)
    twice = styled.patched(few_step_lora(2), 0.5).patched(few_step_lora(3), -0.4)
    both, _ = run(styled, twice)
    torch.testing.assert_close(both, by_hand(styled, twice), rtol=0, atol=1e-4)
    assert {call["model"].patches_uuid for call in comfy.calls} == {styled.patches_uuid}
    assert is_clean(base)


def test_the_loras_own_factors_are_left_alone(comfy, base):
    lora = few_step_lora()
    run(base, base.patched(lora, 0.3))
    assert [each.multiplier for each in lora.values()] == [1.0, 1.0]


def test_the_progress_bar_runs_through_both_parts(comfy, base, few):
    run(base, few)
    seen = [(call["steps"], call["cfg"], call["done"], call["total"]) for call in comfy.calls]
    assert seen == [(3, 2.0, 0, 6), (3, 1.0, 3, 6)]
    assert comfy.evaluations == 6 and comfy.noise == []


@pytest.mark.parametrize("at", range(6))
def test_an_interrupt_at_any_step_leaves_the_model_clean(comfy, base, few, at):
    before = base.model.last(torch.ones(6))
    comfy.interrupt_at = at
    with pytest.raises(KeyboardInterrupt):
        run(base, few)
    assert is_clean(base)
    torch.testing.assert_close(base.model.last(torch.ones(6)), before)
    comfy.interrupt_at = -1
    comfy.evaluations = 0
    torch.testing.assert_close(run(base, few)[0], by_hand(base, few))


def test_a_hook_that_fails_takes_back_those_before_it(base, few):
    class Failing(Hook):
        def inject(self):
            if isinstance(self.module, nn.Linear):
                raise RuntimeError("no memory")
            super().inject()

    with pytest.raises(RuntimeError, match="no memory"), lora_switch.hooked(base, few, Failing):
        pass
    assert is_clean(base)


def unusual(base: Model) -> dict[str, Model]:
    lora = few_step_lora()["last.weight"]
    dora = Lora(*lora.weights[:2], dora=torch.ones(4))
    part = base.clone()
    part.patches = {"last.weight": [(1.0, lora, 1.0, (0, 0, 2), None)]}
    bias = base.clone()
    bias.patches = {"last.bias": [(1.0, ("diff", (torch.ones(4),)), 1.0, None, None)]}
    scaled = base.clone()
    scaled.patches = {"last.weight": [(1.0, lora, 0.5, None, None)]}
    missing = base.clone()
    missing.patches = {"nowhere.weight": [(1.0, lora, 1.0, None, None)]}
    return {
        "dora": base.patched({"last.weight": dora}),
        "part": part,
        "bias": bias,
        "scaled": scaled,
        "missing": missing,
    }


@pytest.mark.parametrize("kind", ["dora", "part", "bias", "scaled", "missing"])
def test_what_a_hook_cannot_do_exactly_is_patched(base, kind):
    few = unusual(base)[kind]
    assert "more than plain low-rank updates" in lora_switch.why_not_hooks(base, few, Hook)
    assert lora_switch.why_not_hooks(base, base.patched(few_step_lora()), Hook) == ""


def test_a_dora_under_the_same_layer_is_patched_but_elsewhere_does_not_matter(base):
    style = Lora(*few_step_lora(4)["last.weight"].weights[:2], dora=torch.ones(4))
    styled = base.patched({"last.weight": style})
    few = styled.patched(few_step_lora())
    assert "DoRA" in lora_switch.why_not_hooks(styled, few, Hook)
    elsewhere = styled.patched({"first.weight": few_step_lora()["first.weight"]})
    assert lora_switch.why_not_hooks(styled, elsewhere, Hook) == ""


def test_other_weights_than_the_bases_are_patched_with_a_note(comfy, base, few):
    other = Model(Network())
    samples, note = run(other, few)
    assert "the two MODELs are different checkpoints" in note
    torch.testing.assert_close(samples, by_hand(other, few))
    styled = base.patched(few_step_lora(seed=9))
    _, note = run(styled, few)
    assert "base MODEL has LoRAs that the few-step MODEL has not" in note


def test_one_model_on_both_inputs_is_refused(comfy, base):
    with pytest.raises(SettingsError, match=r"are the same.*before the few-step LoRA's loader"):
        run(base, base.clone())
    few, other = base.patched(few_step_lora()), Model(Network()).patched(few_step_lora())
    other.attachments["lora_metadata"] = {METADATA_KEY: SD3.to_json()}
    for swapped in (few, other):
        with pytest.raises(SettingsError, match="swapped: the few-step LoRA is on base_model"):
            run(swapped, base)
    injected = base.clone()
    injected.injections["bypass_lora"] = [object()]
    samples, note = run(base, injected)  # the core loader's bypass form: the host switches it
    assert "switched on in 0 layers" in note and comfy.calls[-1]["model"].injections


def test_one_plain_step_is_one_step_without_guidance_and_needs_no_negative(comfy, base, few):
    _, note = run(base, few, anchor="one plain step", base_cfg=0.0, negative=None)
    assert [(call["steps"], call["cfg"]) for call in comfy.calls] == [(1, 1.0), (3, 1.0)]
    assert "Base model: 1 step at CFG 1" in note and "4 network evaluations" in note
    run(base, few, anchor="one plain step", base_cfg=3.0)
    assert comfy.calls[2]["cfg"] == 3.0


def test_guidance_without_a_negative_prompt_is_refused(comfy, base, few):
    with pytest.raises(SettingsError, match=r"CFG 4\.5, and no negative prompt is connected"):
        run(base, few, base_cfg=0.0, negative=None)
    assert comfy.calls == []


def test_fresh_noise_comes_from_the_seed(comfy, base, few):
    first, note = run(base, few, solver="sde")
    assert len(comfy.noise) == 2 and "re-noising" in note
    again, _ = run(base, few, solver="sde")
    assert torch.equal(first, again)
    assert not torch.equal(first, run(base, few, solver="ode")[0])


def test_known_settings_replace_the_recipe_and_follow_steps(comfy, base, few):
    _, note = run(base, few, settings="simple grid, sde", steps=8, recipe=None)
    assert [call["steps"] for call in comfy.calls] == [3, 7] and "re-noising" in note
    with pytest.raises(SettingsError, match="DMD2 4 steps was made for SDXL, and this model is"):
        run(base, few, settings="DMD2 4 steps")


def test_a_lora_without_a_recipe_says_so_and_what_its_metadata_names(comfy, base, few):
    _, note = run(base, few, recipe=None)
    assert "has no recipe" in note and "Choose its kind under settings" in note
    few.attachments["lora_metadata"] = {"modelspec.title": "Hyper-SD 4-steps LoRA"}
    _, note = run(base, few, recipe=None)
    assert "Its metadata says Hyper-SD 4 steps: choose that" in note
    few.attachments["lora_metadata"] = {METADATA_KEY: "{"}
    with pytest.raises(RecipeError, match="not valid JSON"):
        run(base, few, recipe=None)


class Vae:
    """Latent channels 0 .. 2 as colours, each pixel eight wide."""

    def decode(self, latent):
        picture = torch.sigmoid(latent[:, :3]).movedim(1, -1)
        return picture.repeat_interleave(8, 1).repeat_interleave(8, 2)


def compared(base, few, latent=LATENT, **changes):
    inputs = {"first_seed": 3, "num_seeds": 3, "base_steps": 6, "base_cfg": 2.0, "label_a": "base"}
    inputs |= {"model_a": base, "model_b": few, "label_b": "few", "negative": 0.0, **changes}
    return compare.CompareSeeds().compare(0.1, Vae(), latent, **inputs)["result"]


@pytest.fixture
def student(few) -> Model:
    few.attachments["lora_metadata"] = {METADATA_KEY: SD3.to_json()}
    return few


def test_every_arm_draws_every_seed_in_its_own_way(comfy, base, student):
    _, text = compared(base, student)
    assert [(call["model"], call["steps"], call["cfg"], call["seed"]) for call in comfy.calls] == [
        *((base, 6, 2.0, seed) for seed in (3, 4, 5)),
        *((student, 4, 1.0, seed) for seed in (3, 4, 5)),
    ]
    assert [call["done"] for call in comfy.calls] == [0, 6, 12, 18, 22, 26]
    assert {call["total"] for call in comfy.calls} == {30}
    assert "A: base" in text and "euler, simple, 6 steps, CFG 2, 12 evaluations" in text
    assert "by its recipe, 4 steps, CFG 1, 4 evaluations" in text


def test_the_report_holds_the_diversity_of_the_very_pictures(comfy, base, student):
    _, text = compared(base, student)
    found = []
    for model, seeds in ((base, (3, 4, 5)), (student, (3, 4, 5))):
        arm = compare.arm_of("a", "", model, 6, 2.0)
        subject = sampling.Subject(0.1, 0.0, LATENT)
        ((latents, _),) = compare.sample_arms([arm], subject, seeds)
        pictures = [compare.as_image(Vae().decode(latent)) for latent in latents]
        found.append(sample_diversity(layout_vectors(pictures)))
    assert found[0] > 0 and found[0] != found[1]
    assert f"A: base: diversity {found[0]:.3f} (100% of A)" in text
    assert f"B: few: diversity {found[1]:.3f} ({found[1] / found[0]:.0%} of A)" in text


def test_the_sheet_shows_the_pictures_in_order(comfy, base, student):
    sheet, _ = compared(base, student)
    assert sheet.dtype == torch.float32 and sheet.shape[0] == 1 and sheet.shape[-1] == 3
    assert float(sheet.min()) >= 0 and float(sheet.max()) <= 1
    pixels = (sheet[0].numpy() * 255).round().astype(np.uint8)
    arm = compare.arm_of("b", "", student, 6, 2.0)
    subject = sampling.Subject(0.1, 0.0, LATENT)
    ((latents, _),) = compare.sample_arms([arm], subject, (3, 4, 5))
    last = compare.as_image(Vae().decode(latents[-1]))
    last = last.repeat(2, axis=0).repeat(2, axis=1)  # small pictures are enlarged
    right, bottom = pixels.shape[1] - 6, pixels.shape[0] - 6
    np.testing.assert_array_equal(pixels[bottom - 128 : bottom, right - 128 : right], last)


def test_only_the_first_latent_of_a_batch_is_used_and_said(comfy, base, student):
    batch = {"samples": torch.zeros(3, 4, 8, 8), "batch_index": [7, 8, 9]}
    batch["noise_mask"] = torch.ones(3, 8, 8)
    sheet, text = compared(base, student, batch)
    assert "Only the first of 3 latents is used." in text
    assert torch.equal(sheet, compared(base, student)[0])
    one, _ = compare.single(batch)
    assert "batch_index" not in one and one["noise_mask"].shape[0] == 1


def test_a_teacher_with_guidance_needs_a_negative_prompt_before_anything_is_drawn(comfy, base, few):
    with pytest.raises(SettingsError, match="CFG 2, and no negative prompt"):
        compared(base, few, negative=None)
    assert comfy.calls == []
    compared(base, few, negative=None, base_cfg=1.0)
    assert len(comfy.calls) == 6


def test_a_note_of_an_arm_is_in_the_report(comfy, base, student):
    student.attachments["dpdmd_recipe"] = student.attachments["lora_metadata"]["dpdmd.recipe"]
    student.attachments["dpdmd_strength"] = 0.5
    _, text = compared(base, student)
    assert "B: few: The LoRA is at strength 0.5" in text


@pytest.mark.parametrize("name", ["DPDMDAnchoredSampler", "DPDMDCompareSeeds"])
def test_the_nodes_are_listed_and_every_input_is_explained(name):
    kind = comfy_nodes.NODE_CLASS_MAPPINGS[name]
    inputs = kind.INPUT_TYPES()
    for options in (*inputs["required"].values(), *inputs.get("optional", {}).values()):
        assert len(options[1]["tooltip"]) > 10
    assert len(kind.OUTPUT_TOOLTIPS) == len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
    assert json.dumps(inputs)  # what the host sends to the browser
