"""What a user gets wrong: one clear message on stderr, exit code 2, and nothing is lost by it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from dpdmd_studio.cli import main
from safetensors.torch import load_file, save_file
from tiny_runs import new_run

pytestmark = pytest.mark.usefixtures("home")

PREFIX = "model.diffusion_model."


def only(*keys: str) -> dict[str, torch.Tensor]:
    """A file's tensors: those keys, and nothing of a known model."""
    return {key: torch.zeros(2, 2) for key in keys}


def damaged_files(good: Path, folder: Path) -> dict[str, Path]:
    """Checkpoints with one thing wrong each, by the mistake's name."""
    state = load_file(good)
    weights = [key for key in state if key.startswith(PREFIX) and state[key].ndim == 4]
    denoiser = {key: value for key, value in state.items() if key.startswith(PREFIX)}
    encoder = {key: value for key, value in state.items() if key.startswith("cond_stage_model.")}
    nan = state[weights[3]].clone()
    nan.view(-1)[0] = float("nan")
    made = {
        "lora as checkpoint": only("lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"),
        "flux": only(f"{PREFIX}double_blocks.0.img_attn.norm.key_norm.scale"),
        "qwen": only("transformer_blocks.0.txt_mlp.net.0.proj.weight"),
        "strange": only("something.nobody.knows"),
        "no denoiser": encoder,
        "no text encoder": denoiser,
        "nan weights": state | {weights[3]: nan},
        "missing tensor": {key: value for key, value in state.items() if key != weights[3]},
    }
    paths = {}
    for name, tensors in made.items():
        paths[name] = folder / f"{name.replace(' ', '-')}.safetensors"
        save_file(tensors, paths[name])
    for name, content in {
        "empty file": b"", "truncated": good.read_bytes()[:-1000], "noise": bytes(range(256)) * 9
    }.items():  # fmt: skip
        paths[name] = folder / f"{name.replace(' ', '-')}.safetensors"
        paths[name].write_bytes(content)
    for name in ("old.ckpt", "old.pt"):
        paths[name] = folder / name
        paths[name].write_bytes(b"PK\x03\x04")
    return paths | {"folder": folder, "missing": folder / "no-such-file.safetensors"}


CHECKPOINTS = {
    "missing": "no-such-file.safetensors",
    "folder": "is a folder",
    "empty file": "empty",
    "truncated": "truncated.safetensors",
    "noise": "noise.safetensors",
    "old.ckpt": "Convert",
    "old.pt": "Convert",
    "lora as checkpoint": "is a LoRA",
    "flux": "is Flux",
    "qwen": "is Qwen-Image",
    "strange": "no known family",
    "no denoiser": "no denoiser",
    "no text encoder": "--clip-l",
    "nan weights": "NaN or infinite",
    "missing tensor": PREFIX,
}
PROMPT_FILES = {
    "none": (None, "prompts.txt"),
    "comments alone": (b"# nothing\n\n", "prompts.txt"),
    "binary": (b"\x00\x01\x02", "binary"),
    "not utf-8": ("caf\xe9\n".encode("latin-1"), "UTF-8"),
}
SETTINGS = {
    "K too large": (["--anchor-step", "99"], "12 steps"),
    "one step": (["--num-steps", "1"], "least allowed is 2"),
    "rank zero": (["--student-rank", "0"], "least allowed is 1"),
    "odd resolution": (["--resolution", "1001x1024"], "multiples of"),
    "resolution in words": (["--resolution", "large"], "width x height"),
    "all steps anchored": (["--num-anchored-steps", "4"], "at most 3"),
    "infinite rate": (["--student-lr", "inf"], "finite"),
    "no such device": (["--device", "quantum"], "quantum"),
}


def refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails with one message that names the thing, without a traceback."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message, captured.err
    assert "Traceback" not in captured.err and not captured.out


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    return path


@pytest.fixture(scope="module")
def damaged(files, tmp_path_factory) -> dict[str, Path]:
    return damaged_files(files["sd1"], tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("mistake", CHECKPOINTS)
@pytest.mark.parametrize("command", ["distill", "sample"])
def test_a_wrong_checkpoint(command, mistake, damaged, prompts, tmp_path, capsys):
    output = tmp_path / ("new.safetensors" if command == "distill" else "pictures")
    arguments = [command, str(damaged[mistake]), "--prompts", str(prompts), "--output", str(output)]
    refused(arguments, CHECKPOINTS[mistake], capsys)
    assert not list(output.parent.glob("*.safetensors")) and not list(output.parent.glob("*/*.png"))


UNREADABLE = ("missing", "folder", "empty file", "truncated", "noise", "old.ckpt", "old.pt")
# By the header alone; that its weights are no numbers comes out when they are read.
UNUSABLE = ("flux", "qwen", "strange", "no denoiser", "no text encoder", "missing tensor")


@pytest.mark.parametrize("mistake", UNREADABLE)
def test_inspect_refuses_what_it_cannot_read(mistake, damaged, capsys):
    refused(["inspect", str(damaged[mistake])], CHECKPOINTS[mistake], capsys)


@pytest.mark.parametrize("mistake", [m for m in CHECKPOINTS if m not in UNREADABLE])
def test_inspect_describes_every_sound_file(mistake, damaged, capsys):
    assert main(["inspect", str(damaged[mistake])]) == 0
    described = capsys.readouterr().out
    assert (CHECKPOINTS[mistake] in described) == (mistake in UNUSABLE)


@pytest.mark.parametrize("mistake", PROMPT_FILES)
def test_a_wrong_prompts_file(mistake, files, tmp_path, capsys):
    content, named = PROMPT_FILES[mistake]
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    output = tmp_path / "new.safetensors"
    arguments = [str(files["sd1"]), "--prompts", str(path), "--output", str(output)]
    refused(["distill", *arguments], named, capsys)
    assert not output.exists()


@pytest.mark.parametrize("mistake", SETTINGS)
def test_a_setting_without_sense(mistake, files, prompts, tmp_path, capsys):
    options, named = SETTINGS[mistake]
    output = tmp_path / "new.safetensors"
    arguments = [str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    refused(["distill", *arguments, *options], named, capsys)
    assert not output.exists()


def test_an_output_that_exists_is_kept(files, prompts, tmp_path, capsys):
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    arguments = [str(files["sd1"]), "--prompts", str(prompts), "--output", str(taken)]
    refused(["distill", *arguments], "--overwrite", capsys)
    assert taken.read_bytes() == b"mine"


def test_an_output_without_its_folder_or_without_permission(
    files, prompts, tmp_path, capsys, monkeypatch
):
    arguments = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--output"]
    refused([*arguments, str(tmp_path / "a" / "b.safetensors")], str(tmp_path / "a"), capsys)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", forbidden)
    refused([*arguments, str(tmp_path / "b.safetensors")], "may not be written to", capsys)


def test_places_that_are_taken_by_the_run_itself(files, tmp_path, prompts, capsys):
    checkpoint = tmp_path / "model.safetensors"
    shutil.copy(files["sd1"], checkpoint)
    before = checkpoint.read_bytes()
    common = [str(checkpoint), "--prompts", str(prompts), "--overwrite", "--output"]
    refused(["distill", *common, str(checkpoint)], "this run reads", capsys)
    both = str(tmp_path / "both.safetensors")
    refused(["distill", *common, both, "--run", both], "run's folder, too", capsys)
    refused(["distill", *common, str(tmp_path / "lora.ckpt")], ".safetensors", capsys)
    assert checkpoint.read_bytes() == before


def test_a_mistaken_checkpoint_never_costs_an_earlier_run(files, tmp_path, prompts, capsys):
    run = new_run(tmp_path, files["sd1"])
    before = run.settings()
    arguments = ["--prompts", str(prompts), "--run", str(run.path)]
    arguments += ["--output", str(tmp_path / "new.safetensors"), "--overwrite"]
    typo = str(tmp_path / "typo.safetensors")
    refused(["distill", typo, *arguments], "typo.safetensors", capsys)
    assert run.settings() == before


@pytest.mark.parametrize(
    "mistake",
    [["--resolution", "1001x1024"], ["--t5", "no-such-t5.safetensors"], ["--device", "quantum"]],
)
def test_a_mistaken_setting_never_costs_an_earlier_run(mistake, files, tmp_path, prompts, capsys):
    run = new_run(tmp_path, files["sd1"])
    kept = run.checkpoints / "step-00000001.safetensors"
    kept.write_bytes(b"an earlier result")
    arguments = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--run", str(run.path)]
    arguments += ["--output", str(tmp_path / "new.safetensors"), "--overwrite"]
    refused([*arguments, *mistake], mistake[1], capsys)
    assert kept.read_bytes() == b"an earlier result"


def test_a_text_encoder_with_separate_scales_is_refused(files, tmp_path, capsys):
    state = {k: v for k, v in load_file(files["sd1"]).items() if "cond_stage_model" in k}
    prefix = "cond_stage_model.transformer."
    scaled = {key.removeprefix(prefix): value for key, value in state.items()}
    scaled |= {"text_model.encoder.layers.0.mlp.fc1.scale_weight": torch.ones(())}
    save_file(scaled, tmp_path / "clip-scaled.safetensors")
    arguments = ["sample", str(files["sd1"]), "--prompt", "a cat", "--output", str(tmp_path / "p")]
    named = "clip-scaled.safetensors (CLIP-L text encoder) holds quantised"
    refused([*arguments, "--clip-l", str(tmp_path / "clip-scaled.safetensors")], named, capsys)


def test_running_out_of_memory_while_sampling_is_named(files, tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise RuntimeError("MPS backend out of memory (allocated 9 GB)")

    monkeypatch.setattr("dpdmd_studio.trainer.commands.sample.sample_latents", exhausted)
    arguments = ["sample", str(files["sd1"]), "--prompt", "a cat", "--output", str(tmp_path / "p")]
    refused(arguments, "Lower --batch-size", capsys)


LORAS = {
    "missing": "no-such-file.safetensors",
    "a checkpoint": "checkpoint",
    "another family": "LoRA for sdxl",
    "pickle": "pickle",
    "strength in words": "strong",
}


@pytest.mark.parametrize("mistake", LORAS)
def test_a_wrong_lora(mistake, files, tmp_path, capsys):
    sdxl = tmp_path / "sdxl.safetensors"
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    halves = {f"{name}.lora_down.weight": torch.zeros(2, 640)}
    halves |= {f"{name}.lora_up.weight": torch.zeros(640, 2), f"{name}.alpha": torch.tensor(2.0)}
    save_file(halves, sdxl, {"ss_base_model_version": "sdxl_base_v1-0"})
    (tmp_path / "old.pt").write_bytes(b"PK\x03\x04")
    given = {
        "missing": tmp_path / "no-such-file.safetensors",
        "a checkpoint": files["sd1"],
        "another family": sdxl,
        "pickle": tmp_path / "old.pt",
        "strength in words": f"{sdxl}:strong",
    }[mistake]
    pictures = tmp_path / "pictures"
    arguments = ["sample", str(files["sd1"]), "--prompt", "a cat", "--output", str(pictures)]
    refused([*arguments, "--lora", str(given)], LORAS[mistake], capsys)
    assert not list(tmp_path.glob("pictures/*.png"))


def test_resuming_what_is_no_run(tmp_path, capsys):
    refused(["resume", str(tmp_path / "nowhere")], "nowhere", capsys)
    refused(["resume", str(tmp_path)], tmp_path.name, capsys)
