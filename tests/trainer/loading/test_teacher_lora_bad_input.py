"""What a user gets wrong about teacher LoRAs: one clear message, exit code 2, no run is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import lora_networks
import pytest
import torch
from dpdmd_studio.cli import main
from dpdmd_studio.core.lora.file import NewLora, write_lora
from safetensors.torch import load_file, save_file
from style_loras import plain, style
from tiny_runs import new_run

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def loras(files, tmp_path_factory) -> dict[str, Path]:
    """Files that are no teacher LoRA for the tiny SD 1.x, and some that are."""
    folder = tmp_path_factory.mktemp("loras")
    good = style(folder / "good.safetensors", files["sd1"], encoders=False).path
    found = {
        "good": good,
        "copy": folder / "copy.safetensors",
        "with texts": style(folder / "with-texts.safetensors", files["sd1"]).path,
        "missing": folder / "no-such-file.safetensors",
        "folder": folder,
        "checkpoint": files["sd1"],
        "sd3 checkpoint": files["sd3"],
        "text": folder / "notes.txt",
        "text named as a LoRA": folder / "notes.safetensors",
        "pickle": folder / "old.pt",
        "few-step": folder / "few-step.safetensors",
        "truncated": folder / "truncated.safetensors",
    }
    shutil.copy(good, found["copy"])
    for name in ("text", "text named as a LoRA"):
        found[name].write_text("a style LoRA that I like\n" * 9)
    found["pickle"].write_bytes(b"PK\x03\x04")
    found["truncated"].write_bytes(good.read_bytes()[:-1000])
    base = plain(files["sd1"])
    pairs = lora_networks.random_pairs(base.network, base.family, base.config)
    recipe = lora_networks.RECIPES["sd1"]
    write_lora(found["few-step"], NewLora(base.family, base.config, pairs, recipe))
    for name, tensors in made_tensors(load_file(good), load_file(found["with texts"])).items():
        found[name] = folder / f"{name.replace(' ', '-')}.safetensors"
        metadata = {"ss_base_model_version": "sdxl_base_v1-0"} if name == "declared sdxl" else None
        save_file({k: v.clone() for k, v in tensors.items()}, found[name], metadata)
    return found


def made_tensors(good: dict, with_texts: dict) -> dict[str, dict[str, torch.Tensor]]:
    pair = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2)}
    stacked = "lora_unet_input_blocks_4_1_transformer_blocks_5_attn1_to_q"
    first = next(key for key in good if key.endswith("lora_up.weight"))
    nan = good[first].clone()
    nan.view(-1)[0] = float("nan")
    return {
        "sdxl": {f"{stacked}.{half}": value for half, value in pair.items()},
        "flux": {f"lora_unet_double_blocks_0_img_attn_proj.{h}": v for h, v in pair.items()},
        "declared sdxl": {k: v for k, v in with_texts.items() if k.startswith("lora_te_")},
        "of nothing known": {f"lora_unet_some_layer.{h}": v for h, v in pair.items()},
        "odd layer": good | {f"lora_unet_some_layer.{h}": v for h, v in pair.items()},
        "loha": {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(2, 2)},
        "lokr": {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.ones(2, 2)},
        "dora": good | {first.replace("lora_up.weight", "dora_scale"): torch.ones(1)},
        "tucker": good | {first.replace("lora_up", "lora_mid"): torch.ones(3, 5, 3, 3)},
        "nan": good | {first: nan},
        "full": {first.replace("lora_up.weight", "diff"): torch.ones(1)},
        "other sizes": good | {first: torch.ones(7, good[first].shape[1])},
    }


MISTAKES = {
    "missing": (["{missing}"], "There is no file"),
    "folder": (["{folder}"], "is a folder"),
    "a checkpoint": (["{checkpoint}"], "is not a LoRA"),
    "an sd3 checkpoint": (["{sd3 checkpoint}"], "is not a LoRA"),
    "a text": (["{text}"], "notes.txt is not a safetensors file"),
    "a text named as a LoRA": (["{text named as a LoRA}"], "is not a safetensors file"),
    "a pickle": (["{pickle}"], "pickle"),
    "truncated": (["{truncated}"], "cut short"),
    "another family": (["{sdxl}"], "is a LoRA for sdxl, but the model is SD 1.x"),
    "a family that is not handled": (["{flux}"], "is a LoRA for Flux"),
    "another family by its metadata": (["{declared sdxl}"], "is a LoRA for sdxl"),
    "fits nothing": (["{of nothing known}"], "fits nothing in this model"),
    "fits in part": (["{odd layer}"], "does not have: some_layer"),
    "half a LoHa": (["{loha}"], "has no hada_w1_b"),
    "half a LoKr": (["{lokr}"], "has no lokr_w2_a"),
    "DoRA": (["{dora}"], "of kind DoRA"),
    "Tucker": (["{tucker}"], "sizes contradict each other"),
    "NaN": (["{nan}"], "NaN or infinity"),
    "other sizes": (["{other sizes}"], "do not fit the model's"),
    "a few-step LoRA": (["{few-step}"], "is a few-step LoRA that DP-DMD made"),
    "twice": (["{good}:0.5", "{good}:0.25"], "together are strength 0.75"),
    "twice as a copy": (["{good}", "{copy}"], "copy.safetensors. Give it once"),
    "strength zero": (["{good}:0"], "good.safetensors at strength 0 changes nothing"),
    "strength far too high": (["{good}:11"], "outside -10 to 10"),
    "strength in words": (["{good}:strong"], "good.safetensors:strong"),
    "text encoders to be included": (
        ["{with texts}", "--include-teacher-loras"],
        "with-texts.safetensors changes text encoders, too (6 tensors such as 'lora_te_text_model",
    ),
    "whole weights to be included": (
        ["{full}", "--include-teacher-loras"],
        "full.safetensors changes whole weights or biases (1 tensors such as 'lora_unet_",
    ),
    "a difference of another size": (["{full}"], "a difference of sizes (1,), which do not fit"),
    "nothing to be included": (["--include-teacher-loras"], "has nothing to include"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_teacher_lora(mistake, files, loras, tmp_path, capsys):
    given, named = MISTAKES[mistake]
    prompts, output = tmp_path / "prompts.txt", tmp_path / "new.safetensors"
    prompts.write_text("a cat\n")
    command = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    command += ["--run", str(tmp_path / "run")]
    for text in given:
        for name, path in loras.items():
            text = text.replace(f"{{{name}}}", str(path))
        command += [text] if text.startswith("--") else ["--teacher-lora", text]
    assert main(command) == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message, captured.err
    assert "Traceback" not in captured.err and not captured.out
    assert not output.exists() and not (tmp_path / "run").exists()


def test_the_written_lora_never_replaces_a_teacher_lora(files, loras, tmp_path, capsys):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(loras["good"], mine)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    command = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--overwrite"]
    assert main([*command, "--output", str(mine), "--teacher-lora", str(mine)]) == 2
    assert "is a file that this run reads" in capsys.readouterr().err
    assert mine.read_bytes() == loras["good"].read_bytes()


def test_a_mistaken_lora_never_costs_an_earlier_run(files, loras, tmp_path, capsys):
    run = new_run(tmp_path, files["sd1"])
    before = run.settings()
    prompts, output = tmp_path / "prompts.txt", tmp_path / "new.safetensors"
    prompts.write_text("a cat\n")
    command = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    command += ["--run", str(run.path), "--overwrite", "--teacher-lora", str(loras["sdxl"])]
    assert main(command) == 2
    assert "LoRA for sdxl" in capsys.readouterr().err
    assert run.settings() == before


@pytest.mark.parametrize("mistake", ["missing", "checkpoint", "sdxl", "of nothing known", "loha"])
def test_a_wrong_lora_beside_another_while_sampling(mistake, files, loras, tmp_path, capsys):
    command = ["sample", str(files["sd1"]), "--prompt", "a cat", "--output", str(tmp_path / "p")]
    assert main([*command, "--with-lora", str(loras[mistake])]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in captured.err and not list(tmp_path.glob("p/*.png"))
