"""The web UI's sampler on stand-ins of the host: levels, starts, the first step, attention."""

from __future__ import annotations

import contextlib
import itertools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from dpdmd_studio.core.diffusion.schedule import VPSchedule, few_step_positions
from dpdmd_studio.core.errors import LoraError, SettingsError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.resolve import AS_TRAINED, LoraFacts, ModelFacts
from dpdmd_studio.webui_extension.host import attention_classes, models, page, samplers
from dpdmd_studio.webui_extension.sampling import attention, generation, sampler
from torch import nn

TABLE = VPSchedule().sigma_at(torch.arange(1000, dtype=torch.float64))
SD1 = ModelFacts("sd1", "eps")


class Denoiser:
    """CFGDenoiser's face: x0 is half of x, or a tenth while the LoRA is off."""

    def __init__(self, p: Any, from_noise: bool = False) -> None:
        self.p, self.inner_model = p, SimpleNamespace(sigmas=TABLE)
        self.sampler = SimpleNamespace(dpdmd_from_noise=from_noise)
        self.calls: list[tuple[float, float, bool, bool]] = []
        self.off = self.without = False

    def __call__(self, x, sigma, cond_scale=1.0, cond=None):
        self.calls.append((round(float(sigma[0]), 3), cond_scale, self.off, self.without))
        return x * (0.1 if self.off else 0.5)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A host that notes what it is told."""
    told = SimpleNamespace(steps=0, denoiser=None, loras=[])

    @contextlib.contextmanager
    def loras_off(names, x):
        told.loras.append(tuple(names))
        told.denoiser.off = True
        yield
        told.denoiser.off = False

    @contextlib.contextmanager
    def without_negative(denoiser, scale, conditioning):
        denoiser.without = scale == 1.0
        yield
        denoiser.without = False

    replaced: dict[str, Any] = {
        "models.model_facts": lambda sigmas=None: SD1,
        "loras.active_loras": list,
        "samplers.set_total_steps": lambda denoiser, steps: setattr(told, "steps", steps),
        "samplers.initial_noise_factor": lambda sigma, flow: torch.tensor(2.0),
        "loras.loras_off": loras_off,
        "samplers.without_negative": without_negative,
        "loras.lora_beside_layers": contextlib.nullcontext,
        "page.option": lambda name, default: default,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(f"dpdmd_studio.webui_extension.host.{name}", value)
    return told


def test_the_schedule_is_the_familys_grid(stage):
    found = sampler.schedule(4, 0.03, 14.6, SimpleNamespace(sigmas=TABLE))
    expected = VPSchedule().sigma_at(few_step_positions(4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_hosts_slider_goes_beyond_the_steps_of_a_recipe(stage):
    found = sampler.schedule(150, 0.03, 14.6, SimpleNamespace(sigmas=TABLE))
    assert found.shape == (151,) and found[-1] == 0
    assert (found.diff() < 0).all()
    grid = VPSchedule().sigma_at(few_step_positions(128))
    torch.testing.assert_close(found[[0, -2]].double(), grid[[0, -2]].double(), rtol=1e-4, atol=0)
    p = SimpleNamespace(denoising_strength=0.5, extra_generation_params={})
    assert sampler.partial_plan(p, TABLE, 150).num_steps == 75


def test_no_checkpoint_and_foreign_families_are_told(monkeypatch, stage):
    monkeypatch.setattr(models, "model_facts", lambda sigmas=None: None)
    with pytest.raises(SettingsError, match="No checkpoint"):
        generation.in_force(models.model_facts(), AS_TRAINED)
    with pytest.raises(SettingsError, match="does not know"):
        generation.in_force(ModelFacts("", "eps"), AS_TRAINED)


def test_an_active_lora_of_another_family_is_refused(monkeypatch, stage):
    few = LoraFacts("few", default_recipe("sdxl", "eps"))
    monkeypatch.setattr(generation, "active_loras", lambda: [few])
    with pytest.raises(LoraError, match=r"few was made for SDXL, but the model is SD 1\.x"):
        generation.in_force(SD1, AS_TRAINED)


def run(stage: SimpleNamespace, p: Any, *, from_noise: bool = False, **arguments: Any):
    denoiser = stage.denoiser = Denoiser(p, from_noise)
    sigmas = torch.tensor(default_recipe("sd1", "eps").sigmas)
    steps: list[int] = []
    x = sampler.few_step(
        denoiser, torch.ones(1, 1, 2, 2), sigmas, {"cond_scale": 1.0, **arguments},
        lambda step: steps.append(step["i"]),
    )  # fmt: skip
    return denoiser, x, steps


def test_one_evaluation_a_step_without_the_negative(stage):
    denoiser, x, steps = run(stage, SimpleNamespace())
    assert [call[0] for call in denoiser.calls] == [14.615, 4.082, 1.613, 0.693]
    assert all(without for *_, without in denoiser.calls)
    assert steps == [0, 1, 2, 3] and stage.steps == 4
    assert torch.isfinite(x).all()


def test_text_to_image_starts_at_unit_variance(stage):
    _, plain, _ = run(stage, SimpleNamespace())
    _, scaled, _ = run(stage, SimpleNamespace(), from_noise=True)
    torch.testing.assert_close(scaled, 2 * plain)


def test_the_anchored_step_is_the_base_models_in_small_guided_ones(stage):
    p = SimpleNamespace()
    recipe = default_recipe("sd1", "eps")
    generation.tell(p, generation.Told(recipe, generation.Anchor(("few",), 3, 4.5)))
    denoiser, _, steps = run(stage, p, cond_scale=4.5)
    base, student = denoiser.calls[:3], denoiser.calls[3:]
    assert [call[1:] for call in base] == [(4.5, True, False)] * 3
    assert [call[1:] for call in student] == [(1.0, False, True)] * 3
    levels = [call[0] for call in denoiser.calls]
    assert levels == sorted(levels, reverse=True) and levels[0] == 14.615 and levels[3] == 4.082
    assert steps == list(range(6)) and stage.steps == 6
    assert stage.loras == [("few",)]


def test_where_nothing_is_left_to_the_base_model_its_guidance_goes_too(stage):
    p = SimpleNamespace(is_hr_pass=True)
    anchor = generation.Anchor(("few",), 3, 4.5)
    generation.tell(p, generation.Told(default_recipe("sd1", "eps"), anchor))
    denoiser, _, _ = run(stage, p, cond_scale=4.5)
    assert [call[1:] for call in denoiser.calls] == [(1.0, False, True)] * 4


def test_an_image_that_is_hardly_redone_is_not_said_to_be_anchored(stage):
    told = generation.Told(default_recipe("sd1", "eps"), generation.Anchor(("few",), 3, 4.5))
    for more, said in (({}, False), ({"is_hr_pass": True}, True)):
        p = SimpleNamespace(extra_generation_params={"DP-DMD anchored": "3 steps"}, **more)
        generation.tell(p, told)
        denoiser = stage.denoiser = Denoiser(p)
        sampler.few_step(denoiser, torch.ones(1, 1, 2, 2), torch.tensor([0.4, 0.0]), {})
        assert [call[1:3] for call in denoiser.calls] == [(1.0, False)]
        assert ("DP-DMD anchored" in p.extra_generation_params) is said


def test_a_renoising_recipe_takes_the_hosts_noise(stage):
    """The next of the host's own stream for each step, whose images have seeds of their own."""
    stream = iter(torch.tensor([1.0, -2.0, 3.0]))
    p = SimpleNamespace(rng=SimpleNamespace(next=lambda: next(stream)))
    recipe = default_recipe("sd1", "eps")
    object.__setattr__(recipe, "solver", "sde")
    generation.tell(p, generation.Told(recipe))
    _, x, _ = run(stage, p)
    # the last step returns x0, half of x0 + sigma * noise before it
    expected = 1.0
    for sigma, noise in zip((*recipe.sigmas[1:-1], 0.0), (1, -2, 3, 0), strict=True):
        expected = 0.5 * expected + sigma * noise
    torch.testing.assert_close(x, torch.full_like(x, expected))


FLOW = default_recipe("sdxl", "flow", shift=2.0)


@pytest.fixture
def flow_host(monkeypatch, stage) -> Any:
    """An SDXL that the host takes for eps, whose velocity is its input, and a LoRA of a flow."""
    fed: list[float] = []

    def apply_model(x, timesteps, cond=None):
        fed.extend(timesteps.tolist())
        return x

    class DiscreteSchedule:
        def __init__(self, sigmas, quantize):
            self.sigmas = sigmas

        def __call__(self, *inputs, **conditions):
            return self.forward(*inputs, **conditions)

    shared = ModuleType("modules.shared")
    shared.sd_model, shared.device = SimpleNamespace(apply_model=apply_model, fed=fed), "cpu"
    external = ModuleType("k_diffusion.external")
    external.DiscreteSchedule = DiscreteSchedule
    for name, module in (
        ("modules", ModuleType("modules")), ("modules.shared", shared),
        ("k_diffusion", ModuleType("k_diffusion")), ("k_diffusion.external", external),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["modules"].shared = shared
    sys.modules["k_diffusion"].external = external
    facts = ModelFacts("sdxl", "eps", flow_at_will=True)
    monkeypatch.setattr(models, "model_facts", lambda sigmas=None: facts)
    monkeypatch.setattr(generation, "active_loras", lambda: [LoraFacts("few", FLOW)])
    return shared.sd_model


class Wrapping(Denoiser):
    """CFGDenoiser as far as it hands its input to the wrapped network."""

    def __init__(self, p: Any) -> None:
        super().__init__(p)
        self.model_wrap = SimpleNamespace(sigmas=TABLE)

    inner_model = property(lambda self: self.model_wrap, lambda self, value: None)

    def __call__(self, x, sigma, cond_scale=1.0, cond=None):
        return self.inner_model(x, sigma)


def test_an_sdxl_is_sampled_as_the_flow_that_its_lora_was_trained_for(flow_host):
    found = generation.in_force(models.model_facts(), AS_TRAINED)
    assert "sampled as a rectified flow of shift 2" in found.plan.note
    denoiser = Wrapping(SimpleNamespace())
    sigmas = torch.tensor(FLOW.sigmas)
    x = sampler.few_step(denoiser, torch.ones(2, 1, 2, 2), sigmas, {})
    levels = FLOW.sigmas
    assert flow_host.fed == pytest.approx([1000 * s for s in levels[:-1] for _ in range(2)])
    expected = 1.0
    for here, there in itertools.pairwise(levels):
        expected += (there - here) * expected
    torch.testing.assert_close(x, torch.full_like(x, expected))
    assert float(denoiser.inner_model.sigmas[-1]) == 1
    with samplers.noising_as_flow():
        noised = flow_host.add_noise_to_latent(torch.ones(1), torch.zeros(1), torch.tensor(0.25))
    assert float(noised) == 0.75 and not hasattr(flow_host, "add_noise_to_latent")


def test_a_host_that_scales_by_itself_is_told_what_to_set(monkeypatch, flow_host):
    with pytest.raises(LoraError, match=r"reForge turn on .*shift 2\).*'rectified'"):
        generation.in_force(ModelFacts("sdxl", "eps"), AS_TRAINED)


@pytest.mark.parametrize(
    ("strength", "exact", "first", "count"),
    [
        (0.5, False, 1.613, 2),
        (0.3, False, 0.693, 1),
        (0.25, False, 0.693, 1),
        (0.15, False, 0.454, 1),  # below the trained levels: as asked
        (0.01, False, 0.094, 1),
        (1.0, False, 14.615, 4),
    ],
)
def test_image_to_image_starts_at_a_trained_level(stage, strength, exact, first, count):
    p = SimpleNamespace(denoising_strength=strength, extra_generation_params={})
    part = sampler.partial_plan(p, TABLE, 4)
    assert round(float(part.sigmas[0]), 3) == first and part.num_steps == count
    assert p.extra_generation_params == {"DP-DMD image steps": f"{count} of 4"}


def test_exact_strength_starts_there_and_goes_on_at_trained_levels(monkeypatch, stage):
    monkeypatch.setattr(page, "option", lambda name, default: name == sampler.EXACT_STRENGTH)
    p = SimpleNamespace(denoising_strength=0.6, extra_generation_params={})
    part = sampler.partial_plan(p, TABLE, 4)
    expected = VPSchedule().sigma_at(torch.tensor([599.0, 499, 249, -1], dtype=torch.float64))
    torch.testing.assert_close(part.sigmas, expected, rtol=1e-4, atol=1e-6)
    assert p.extra_generation_params["DP-DMD exact strength"] is True


@pytest.mark.parametrize(
    ("scheduler", "hires", "is_hires", "own"),
    [
        ("Automatic", None, False, True),
        ("DP-DMD", None, False, True),
        ("Karras", None, False, False),
        ("Karras", "DP-DMD", True, True),
        ("Automatic", "Karras", True, False),
        (None, "Use same scheduler", True, True),
    ],
)
def test_another_schedule_type_is_the_users_choice(scheduler, hires, is_hires, own):
    p = SimpleNamespace(scheduler=scheduler, hr_scheduler=hires, is_hr_pass=is_hires)
    assert sampler.uses_own_schedule(p) is own


# Attention


class Attention(nn.Module):
    """CrossAttention of the host's networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = 2
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.to_out = nn.Linear(8, 8)


def test_the_attention_entry_computes_attention_with_hypernetworks(monkeypatch):
    monkeypatch.setattr(page, "option", lambda name, default: default)
    monkeypatch.setattr(attention_classes, "hypernetwork_contexts", lambda c: (c + 1, c - 1))
    module, x, context = Attention(), torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        found = attention.forward(module, x, context, mask=mask)
        q, k, v = module.to_q(x), module.to_k(context + 1), module.to_v(context - 1)
        parts = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[..., head] @ k[..., head].transpose(1, 2) / 2.0
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
            parts.append(scores.softmax(-1) @ v[..., head])
        expected = module.to_out(torch.cat(parts, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_where_xformers_cannot_run_the_hosts_attention_stays_and_says_so(monkeypatch):
    monkeypatch.setattr(attention_classes, "attention_classes", lambda: [Attention])
    monkeypatch.setattr(models, "device_and_dtype", lambda: (torch.device("cpu"), torch.float32))
    assert attention.note(attention.HOST) == ""
    assert "host's attention is used" in attention.note(attention.XFORMERS)
    assert not attention.Optimizer().is_available()
    replaced: list[object] = []
    monkeypatch.setattr(attention_classes, "replace_attention", replaced.append)
    with attention.during(attention.XFORMERS):
        pass
    assert replaced == []


def test_hosts_that_choose_at_their_start_are_left_alone(monkeypatch):
    monkeypatch.setattr(attention_classes, "attention_classes", list)
    assert "when it starts" in attention.note(attention.XFORMERS)
