"""What a run may be given: folders, other predictions, T5, formats, precisions, resolutions."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import torch
from dpdmd_studio import cli
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.core.lora.metadata import training_comment
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.commands.open_session import open_session
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import PROMPTS, TINY, distil, new_run

pytestmark = pytest.mark.usefixtures("home")


def changed(outcome: runner.Outcome) -> bool:
    """Whether training moved the student: its up matrices start at zero."""
    state = load_file(outcome.lora)
    ups = [v for k, v in state.items() if k.endswith(("lora_up.weight", "lora_B.weight"))]
    return bool(ups) and all(bool(v.isfinite().all()) for v in ups) and any(v.any() for v in ups)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_a_diffusers_folder_distils(name, tmp_path):
    tiny = getattr(checkpoints, name)()
    folder = checkpoints.save_folder(tmp_path / "model", tiny)
    outcome = distil(new_run(tmp_path / "run", folder, steps=2))
    recipe = read_lora(outcome.lora).recipe
    assert recipe is not None and recipe.family == name and changed(outcome)


@pytest.mark.parametrize(("zsnr", "marker"), [(False, "v_pred"), (True, "ztsnr")])
def test_v_prediction_of_sdxl_is_read_off_its_markers(zsnr, marker, tmp_path):
    state = checkpoints.file_state(checkpoints.sdxl()) | {"v_pred": torch.zeros(0)}
    state |= {marker: torch.zeros(0)}
    path = checkpoints.save(tmp_path / "v.safetensors", state)
    run = new_run(tmp_path, path, steps=2)
    usual = 0.7 if zsnr else 0.0  # written into the run, which goes on with it
    assert run.settings()["config"]["guidance_rescale"] == usual
    outcome = distil(run)
    recipe = read_lora(outcome.lora).recipe
    assert recipe is not None and changed(outcome)
    assert recipe.guidance_rescale == usual
    assert outcome.session.trainer.settings.objective().teacher_guidance.rescale == usual
    assert (recipe.prediction, recipe.zero_terminal_snr) == ("v", zsnr)
    assert (recipe.sigmas[0] > 100) == zsnr  # zero terminal SNR starts from all but pure noise


def test_a_rescale_that_was_set_stays_and_the_recipe_names_the_real_scores_guidance(tmp_path):
    """Runs of earlier versions had rescale 0 for zero terminal SNR, too, written down."""
    state = checkpoints.file_state(checkpoints.sdxl()) | {"ztsnr": torch.zeros(0)}
    path = checkpoints.save(tmp_path / "v.safetensors", state | {"v_pred": torch.zeros(0)})
    asked = {"guidance_rescale": 0.0, "real_guidance": 1.75, "real_guidance_high": 900}
    session = open_session(new_run(tmp_path, path, **asked))
    recipe, aim = session.recipe(), session.trainer.settings.objective()
    assert recipe.zero_terminal_snr and recipe.guidance_rescale == aim.teacher_guidance.rescale == 0
    assert (recipe.teacher_guidance_scale, recipe.real_guidance_scale) == (7.0, 1.75)
    assert recipe.real_guidance_interval == (0, 900)
    said = (
        "guidance 7, negative prompt empty; real score: guidance 1.75 at timesteps 0 to 900 alone."
    )
    assert said in training_comment(recipe)


def test_a_zero_terminal_snr_teacher_is_drawn_with_the_rescale_that_it_is_trained_with(tmp_path):
    state = checkpoints.file_state(checkpoints.sdxl()) | {"ztsnr": torch.zeros(0)}
    path = checkpoints.save(tmp_path / "v.safetensors", state | {"v_pred": torch.zeros(0)})
    words = ["sample", path, "--prompt", "a cat", "--seeds", "1", "--steps", "2", "--device=cpu"]
    words += ["--resolution", "64x64", "--output"]
    for name, more in (("own", []), ("same", ["0.7"]), ("none", ["0"])):
        asked = [word for value in more for word in ("--guidance-rescale", value)]
        assert cli.main([str(word) for word in (*words, tmp_path / name, *asked)]) == 0
    own, same, none = (
        np.array(Image.open(tmp_path / name / "001-00000001.png"))
        for name in ("own", "same", "none")
    )
    assert np.array_equal(own, same) and not np.array_equal(own, none)


def test_sd3_with_t5_distils(tmp_path):
    state = checkpoints.file_state(checkpoints.sd3(medium35=True))
    path = checkpoints.save(tmp_path / "t5.safetensors", state)
    outcome = distil(new_run(tmp_path, path, steps=2))
    assert "t5xxl" in outcome.session.checkpoint.encoders and changed(outcome)
    lengths = {entry.context.shape[1] for entry in outcome.session.encoded.values()}
    assert min(lengths) > 77  # CLIP's tokens, then T5's


def test_sd35_large_distils_into_a_lora_that_says_so(tmp_path):
    state = checkpoints.file_state(checkpoints.sd35_large())
    path = checkpoints.save(tmp_path / "large.safetensors", state)
    outcome = distil(new_run(tmp_path, path, steps=2))
    assert outcome.session.checkpoint.detection.title == "SD3.5 large" and changed(outcome)
    metadata = read_lora(outcome.lora).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-3-5-large/lora"


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_a_file_for_diffusers_holds_the_same_student(name, files, tmp_path):
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(files[name])),
        config=DistillConfig.from_dict(TINY | {"steps": 2}),
        output=str(tmp_path / "student.safetensors"),
        file_format="peft",
    )
    run = runner.create_run(tmp_path / "run", request, PROMPTS, overwrite=False)
    outcome = distil(run)
    prefix = "transformer." if name == "sd3" else "unet."
    assert all(key.startswith(prefix) for key in load_file(outcome.lora))
    assert changed(outcome) and read_lora(outcome.lora).recipe is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_distil(dtype, files, tmp_path):
    outcome = distil(new_run(tmp_path, files["sd1"], steps=2, dtype=dtype))
    network = outcome.session.call.network
    frozen = {p.dtype for n, p in network.named_parameters() if "lora_" not in n}
    trained = {p.dtype for n, p in network.named_parameters() if "lora_" in n}
    assert frozen == {getattr(torch, dtype)} and trained == {torch.float32}
    assert changed(outcome)


def test_several_resolutions_take_turns(files, tmp_path):
    outcome = distil(new_run(tmp_path, files["sdxl"], steps=3, resolution="32x32,32x48,48x32"))
    assert outcome.session.latent_shapes == [(4, 4, 4), (4, 6, 4), (4, 4, 6)]
    recipe = read_lora(outcome.lora).recipe
    assert recipe is not None and recipe.resolutions == ((32, 32), (32, 48), (48, 32))


@pytest.mark.parametrize("gradient_steps", ["random", "last", "all"])
@pytest.mark.parametrize("objective", ["dp_dmd", "dmd", "no_detach", "detach_only"])
def test_every_objective_runs(objective, gradient_steps, files, tmp_path):
    settings = {"objective": objective, "gradient_steps": gradient_steps, "steps": 1}
    assert changed(distil(new_run(tmp_path, files["sd3"], **settings)))


def test_gradient_checkpointing_changes_no_number(files, tmp_path):
    plain = distil(new_run(tmp_path / "a", files["sd1"], steps=2))
    saving = distil(new_run(tmp_path / "b", files["sd1"], steps=2, gradient_checkpointing=True))
    ours, theirs = load_file(plain.lora), load_file(saving.lora)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-2, atol=1e-4)
