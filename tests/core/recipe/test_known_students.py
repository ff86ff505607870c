"""The grids of foreign few-step LoRAs against the schedulers their makers name."""

from __future__ import annotations

import pytest
from dpdmd_studio.core.diffusion.schedule import Levels, VPSchedule, few_step_positions
from dpdmd_studio.core.errors import SettingsError
from dpdmd_studio.core.recipe.known_students import (
    KNOWN_STUDENTS,
    consistency_grid,
    recognise,
    simple_grid,
)
from dpdmd_studio.core.recipe.recipe import Recipe

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def recipe(name: str, family: str = "sdxl", **facts) -> Recipe:
    """The recipe of a known kind on a model of that family."""
    prediction = facts.pop("prediction", "flow" if family == "sd3" else "eps")
    return KNOWN_STUDENTS[name].recipe(family, prediction, **facts)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 6, 7, 8, 50])
def test_the_consistency_grid_is_that_of_both_diffusers_schedulers(num_steps):
    from diffusers import LCMScheduler, TCDScheduler

    for scheduler in (LCMScheduler(**BETAS), TCDScheduler(**BETAS)):
        scheduler.set_timesteps(num_steps)
        assert scheduler.timesteps.tolist() == consistency_grid(num_steps)


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_trailing_ode_kinds_have_the_grid_of_euler_and_ddim(num_steps):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    for maker in (DDIMScheduler, EulerDiscreteScheduler):
        scheduler = maker(**BETAS, timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps)
        expected = [float(t) for t in scheduler.timesteps]
        for kind in ("SDXL-Lightning", "Hyper-SD", "PCM"):
            found = recipe(f"{kind} {num_steps} steps")
            assert (found.solver, found.guidance_scale) == ("ode", 1.0)
            assert list(found.timesteps) == pytest.approx(expected, abs=2e-3)


def test_dmd2_has_the_levels_of_its_readme_and_adds_fresh_noise():
    found = recipe("DMD2 4 steps")
    assert found.solver == "sde" and found.num_steps == 4 and found.guidance_scale == 1.0
    assert list(found.timesteps) == pytest.approx([999, 749, 499, 249], abs=2e-3)
    levels = Levels.at_positions(VPSchedule(), few_step_positions(4))
    assert list(found.sigmas) == levels.sigmas.tolist()
    assert found.plain_host.startswith("none")  # a plain host would not add the noise


def test_lcm_goes_on_its_own_grid_at_any_number_of_steps():
    for num_steps, expected in ((4, [999, 759, 499, 259]), (2, [999, 499])):
        found = recipe("LCM", "sd1", num_steps=num_steps)
        assert list(found.timesteps) == pytest.approx(expected, abs=2e-3)
        assert found.solver == "sde" and found.sigmas[-1] == 0
    with pytest.raises(SettingsError, match=r"51 steps.*1 to 50"):
        recipe("LCM", "sd1", num_steps=51)


def test_the_generic_grid_follows_the_shift_and_the_end_of_the_model():
    flow = recipe("simple grid, ode", "sd3")
    assert flow.sigmas == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0), abs=1e-6)
    unshifted = recipe("simple grid, sde", "sd3", shift=1.0)
    assert unshifted.sigmas == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0), abs=1e-6)
    assert (flow.solver, unshifted.solver) == ("ode", "sde")
    zero_snr = recipe("simple grid, ode", prediction="v", zero_terminal_snr=True)
    assert zero_snr.sigmas[0] > 4000


def test_every_kind_gives_a_grid_that_can_be_anchored():
    for student in KNOWN_STUDENTS.values():
        prediction = student.prediction or "eps"
        found = recipe(student.name, student.families[0], prediction=prediction)
        assert found.num_steps >= 2 and student.source
        assert found.timesteps[0] == pytest.approx(1000.0 if prediction == "flow" else 999.0)


def test_a_kind_of_another_family_or_prediction_is_refused():
    with pytest.raises(SettingsError, match=r"SDXL-Lightning 4 steps was made for SDXL.*SD 1.x"):
        recipe("SDXL-Lightning 4 steps", "sd1")
    with pytest.raises(SettingsError, match=r"eps prediction.*v prediction"):
        recipe("DMD2 4 steps", prediction="v")
    with pytest.raises(SettingsError, match=r"Anima Turbo 8 steps was made for Anima.*is SD3"):
        recipe("Anima Turbo 8 steps", "sd3")
    with pytest.raises(SettingsError, match="this model is of another family"):
        recipe("simple grid, ode", "")


def test_the_simple_grid_is_the_positions_of_the_schedule():
    for num_steps in (1, 3, 4, 8):
        assert simple_grid(num_steps) == few_step_positions(num_steps)[:-1].tolist()


@pytest.mark.parametrize(
    ("metadata", "filename", "expected"),
    [
        ({"modelspec.title": "SDXL Lightning 4-step LoRA"}, "", "SDXL-Lightning 4 steps"),
        ({"ss_output_name": "dmd2_sdxl_4step_lora_fp16"}, "x", "DMD2 4 steps"),
        ({"ss_output_name": "Hyper-SDXL-8steps-lora"}, "", "Hyper-SD 8 steps"),
        ({"modelspec.title": "lcm-lora-sdxl"}, "lcm 8 steps.safetensors", "LCM"),
        ({"modelspec.title": "SDXL Lightning 4-step LoRA"}, "lightning_8step.safetensors", None),
        ({"modelspec.title": "my style for lightning 4 steps"}, "", None),
        ({"modelspec.title": "SDXL Lightning 3 step"}, "", None),
        ({"ss_sd_model_name": "sdxl_lightning_4step"}, "", None),
        ({}, "dmd2_sdxl_4step_lora.safetensors", None),
        (
            {"modelspec.title": "dmd2 4 step", "ss_output_name": "hyper-sd 4 steps"},
            "",
            None,
        ),
    ],
)
def test_recognition_trusts_a_plain_title_and_nothing_else(metadata, filename, expected):
    assert recognise(metadata, filename) == expected
