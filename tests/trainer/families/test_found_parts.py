"""A bare transformer's text encoder and VAE are found where hosts keep them; it is said which."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import checkpoints
import pytest
import torch
from dpdmd_studio.app.config.found_files import with_found_files
from dpdmd_studio.app.config.request import ModelFiles
from dpdmd_studio.app.gui.forms.distill_hints import describe_checkpoint
from dpdmd_studio.app.library import choices
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import CheckpointError
from dpdmd_studio.trainer.families.zimage import ZImageTransformer

pytestmark = pytest.mark.usefixtures("home")
ENCODER, VAE = "qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors"
TRAINING = (
    "--steps=1", "--batch-size=1", "--fake-updates=1", "--student-rank=1", "--fake-rank=1",
    "--teacher-steps=4", "--resolution=64x48", "--warmup-steps=1", "--device=cpu",
    "--preview-every=0", "--evaluation-prompts=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """The files, and some of other models that lie in the same folders."""
    folder = checkpoints.anima_folder(tmp_path_factory.mktemp("anima"))
    wide = {f"model.{n}": v for n, v in checkpoints.qwen3(64).state_dict().items()}
    checkpoints.save(folder / "qwen_3_4b.safetensors", wide)
    network = ZImageTransformer(**checkpoints.ZIMAGE_TRANSFORMER | {"cap_feat_dim": 64})
    zimage = checkpoints.zimage_names(checkpoints.drawn(network, 0))
    checkpoints.save(folder / "z_image.safetensors", zimage)
    t5 = dict(checkpoints.t5().state_dict())
    checkpoints.save(folder / "t5xxl.safetensors", t5)
    kl = checkpoints.vae_names(checkpoints.kl_vae(16, quant_conv=False))
    checkpoints.save(folder / "ae.safetensors", kl)
    tiny = {"1.weight": torch.ones(64, 16, 3, 3), "1.bias": torch.ones(64)}
    checkpoints.save(folder / "taesd3.safetensors", tiny)  # for as many channels, of another VAE
    return folder


def host(parts: Path, models: Path, *, place: str, **files: tuple[str, ...]) -> Path:
    """A host's models folder with the transformer in `place`; files: (name, name here) by folder.

    A name may have folders before it.
    """
    path = models / place / "anima.safetensors"
    path.parent.mkdir(parents=True)
    shutil.copy2(parts / "anima.safetensors", path)
    for folder, names in files.items():
        for name in names:
            here, _, source = name.partition("=")
            target = models / folder / here
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(parts / (source or Path(here).name), target)
    return path


OTHERS = ("qwen_3_4b.safetensors", "t5xxl.safetensors")
OTHER_VAES = ("ae.safetensors", "taesd3.safetensors")
THIS = f"{VAE}=vae.safetensors"


@pytest.mark.parametrize(
    ("place", "encoders", "vaes"),
    [
        ("diffusion_models", "text_encoders", "vae"),
        ("unet", "clip", "vae"),
        ("diffusion_models/anime/new", "text_encoders", "vae"),
        ("Stable-diffusion", "text_encoder", "VAE"),  # Forge Neo
    ],
)
def test_the_files_of_the_hosts_folders_are_found(parts, tmp_path, place, encoders, vaes):
    path = host(
        parts, tmp_path, place=place,
        **{encoders: (*OTHERS, f"deeper/{ENCODER}"), vaes: (*OTHER_VAES, THIS)},
    )  # fmt: skip
    model, notes = with_found_files(ModelFiles(checkpoint=str(path)))
    assert model.qwen == str(tmp_path / encoders / "deeper" / ENCODER)
    assert model.vae == str(tmp_path / vaes / VAE)
    assert notes == (
        f"Qwen3 text encoder: deeper/{ENCODER} is taken, as none was named.",
        f"VAE: {vaes}/{VAE} is taken, as none was named.",
    )


def test_files_in_the_models_own_folder_are_found_and_whole_models_are_no_parts(parts, tmp_path):
    path = host(
        parts, tmp_path, place="x", x=(ENCODER, "vae.safetensors", "whole.safetensors", *OTHER_VAES)
    )
    model, notes = with_found_files(ModelFiles(checkpoint=str(path)))
    assert (model.qwen, model.vae) == (
        str(tmp_path / "x" / ENCODER),
        str(tmp_path / "x" / "vae.safetensors"),
    )
    assert len(notes) == 2


def test_what_was_named_or_is_in_the_file_is_never_looked_for(parts, tmp_path):
    files = (f"{ENCODER}", f"other.safetensors={ENCODER}")
    path = host(parts, tmp_path, place="unet", text_encoders=files, vae=(THIS,))
    other = str(tmp_path / "text_encoders" / "other.safetensors")
    named = ModelFiles(checkpoint=str(path), qwen=other, vae=str(parts / "vae.safetensors"))
    assert with_found_files(named) == (named, ())
    whole = ModelFiles(checkpoint=str(shutil.copy2(parts / "whole.safetensors", path.parent)))
    assert with_found_files(whole) == (whole, ())


def test_of_several_the_published_name_is_a_stated_choice(parts, tmp_path):
    path = host(
        parts, tmp_path, place="unet",
        text_encoders=(ENCODER, f"qwen3_instruct.safetensors={ENCODER}"),
        vae=("wan_2.1_vae.safetensors=vae.safetensors", THIS),
    )  # fmt: skip
    model, notes = with_found_files(ModelFiles(checkpoint=str(path)))
    assert Path(str(model.qwen)).name == ENCODER and Path(str(model.vae)).name == VAE
    assert "not text_encoders/qwen3_instruct.safetensors, since it has the published" in notes[0]
    assert "not vae/wan_2.1_vae.safetensors" in notes[1]


def test_several_without_that_name_are_an_error_or_left_alone(parts, tmp_path):
    same = tuple(f"{name}.safetensors={ENCODER}" for name in ("a", "b"))
    path = host(parts, tmp_path, place="unet", text_encoders=same)
    with pytest.raises(
        CheckpointError,
        match=r"2 files beside anima.safetensors may be its Qwen3 text encoder: "
        r"text_encoders/a.safetensors, text_encoders/b.safetensors. Say which with --qwen.",
    ):
        with_found_files(ModelFiles(checkpoint=str(path)))
    vaes = tuple(f"{name}.safetensors=vae.safetensors" for name in ("a", "b"))
    path = host(parts, tmp_path / "2", place="unet", text_encoders=(ENCODER,), vae=vaes)
    model, notes = with_found_files(ModelFiles(checkpoint=str(path)))
    assert model.vae is None  # images are shown without one
    assert "may be its VAE: vae/a.safetensors, vae/b.safetensors. None is taken" in notes[1]


def test_one_file_under_two_names_is_one(parts, tmp_path):
    path = host(parts, tmp_path, place="unet", text_encoders=(ENCODER,))
    try:
        (tmp_path / "text_encoders" / "same.safetensors").symlink_to(
            tmp_path / "text_encoders" / ENCODER
        )
    except OSError:
        pytest.skip("links are not allowed here")
    model, notes = with_found_files(ModelFiles(checkpoint=str(path)))
    assert model.qwen and len(notes) == 1


def test_commands_take_what_is_found_and_say_so(parts, tmp_path, caplog, capsys):
    path = host(parts, tmp_path, place="unet", text_encoders=(ENCODER, *OTHERS), vae=(THIS,))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    said = f"Qwen3 text encoder: text_encoders/{ENCODER} is taken"
    lora, run = tmp_path / "few.safetensors", tmp_path / "run"
    shared = ["--prompts", tmp_path / "prompts.txt"]
    commands = {
        "distill": [path, *shared, "--output", lora, "--run", run, *TRAINING],
        "sample": [path, *shared, "--lora", lora, "--output", tmp_path / "drawn",
                   "--resolution", "64x48", "--device", "cpu"],
        "package": [lora, path, *shared, "--output", tmp_path / "pack", "--count", 6,
                    "--device", "cpu"],
        "estimate": [path],
    }  # fmt: skip
    for name, words in commands.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="dpdmd_studio"):
            assert main([name, *map(str, words)]) == 0, name
        told = [line for line in caplog.messages if said in line]
        assert len(told) == 1, name
        capsys.readouterr()
    files = json.loads((run / "settings.json").read_text())["model"]
    assert files["qwen"].endswith(ENCODER) and files["vae"].endswith(VAE)  # it goes on with these
    nodes = json.loads((tmp_path / "pack" / "workflow.json").read_text())["nodes"]
    loaders = {n["type"]: n["widgets_values"][0] for n in nodes if "oader" in n["type"]}
    assert (loaders["CLIPLoader"], loaders["VAELoader"]) == (ENCODER, VAE)


def test_the_page_says_what_a_run_would_take(parts, tmp_path, monkeypatch):
    path = host(parts, tmp_path, place="unet", text_encoders=(ENCODER,), vae=(THIS,))
    monkeypatch.setattr(choices, "folders", lambda: [tmp_path])
    shown = describe_checkpoint({"checkpoint": str(path)})
    assert f"text_encoders/{ENCODER} is taken" in shown["detected"]
    assert not shown["checkpoint_note"]


def test_each_model_takes_its_own_of_what_lies_in_the_same_folders(parts, tmp_path, monkeypatch):
    anima = host(
        parts, tmp_path, place="unet", text_encoders=(ENCODER, *OTHERS), vae=(THIS, *OTHER_VAES)
    )
    zimage = Path(shutil.copy2(parts / "z_image.safetensors", anima.parent))
    monkeypatch.setattr(choices, "folders", lambda: [tmp_path])
    expected = {anima: (ENCODER, VAE), zimage: ("qwen_3_4b.safetensors", "ae.safetensors")}
    for path, (encoder, vae) in expected.items():
        model, _ = with_found_files(ModelFiles(checkpoint=str(path)))
        assert (Path(str(model.qwen)).name, Path(str(model.vae)).name) == (encoder, vae)
        shown = describe_checkpoint({"checkpoint": str(path)})
        assert f"text_encoders/{encoder} is taken" in shown["detected"]
        assert not shown["checkpoint_note"]
