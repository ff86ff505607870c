"""Runs whose teacher has the user's LoRAs: what is learnt, written, named and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import LoraError, RunError
from dpdmd_studio.core.files.hashes import file_hashes
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.text.cache import encoder_identity
from dpdmd_studio.trainer.training.state import MACHINE_SETTINGS, run_fingerprint
from style_loras import change, plain, style
from tiny_runs import PROMPTS, TINY, distil, final_state, heard, metrics_of, new_run, request_stop

pytestmark = pytest.mark.usefixtures("home")


def test_a_student_is_distilled_from_the_merged_teacher(files, tmp_path):
    item = style(tmp_path / "my style.safetensors", files["sd1"])
    run = new_run(tmp_path, files["sd1"], teacher_loras=[(item.path, 0.7)], steps=1)
    with heard() as said:
        outcome = distil(run)
    assert any(line.startswith("Merged my style.safetensors at strength 0.7") for line in said)
    session, base = outcome.session, plain(files["sd1"])
    for module, pair in item.denoiser.items():
        layer = session.checkpoint.network.get_submodule(module)
        weight = getattr(layer, "base_layer", layer).weight.double()
        expected = base.network.get_submodule(module).weight.double()
        torch.testing.assert_close(
            weight, expected + 0.7 * change(pair, weight.shape), rtol=1e-5, atol=1e-6
        )
    hashes = file_hashes(item.path)
    (named,) = read_lora(outcome.lora).recipe.merged_loras
    assert dataclasses.asdict(named) == {
        "name": "my style.safetensors",
        "strength": 0.7,
        "sha256": hashes.sha256,
        "autov3": hashes.autov3,
        "included": False,
    }


def test_a_stopped_run_with_a_lora_resumes_exactly(files, tmp_path, capsys):
    item = style(tmp_path / "a.safetensors", files["sd3"])
    whole = new_run(tmp_path / "whole", files["sd3"], teacher_loras=[(item.path, 0.7)])
    parts = new_run(tmp_path / "parts", files["sd3"], teacher_loras=[(item.path, 0.7)])
    distil(whole)
    distil(parts, lambda progress: request_stop(parts) if progress.step == 1 else None)
    assert main(["resume", str(parts.path)]) == 0
    assert "Merged a.safetensors at strength 0.7" in capsys.readouterr().err
    expected, found = final_state(whole), final_state(parts)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert metrics_of(whole) == metrics_of(parts)
    without = new_run(tmp_path / "without", files["sd3"], steps=1)
    distil(without)
    assert metrics_of(without)[0] != metrics_of(whole)[0]


def test_a_lora_that_changed_or_went_is_named_at_resume(files, tmp_path):
    item = style(tmp_path / "a.safetensors", files["sd3"])
    run = new_run(tmp_path, files["sd3"], teacher_loras=[(item.path, 0.7)], steps=1)
    distil(run)
    kept = tmp_path / "kept.safetensors"
    shutil.copy(item.path, kept)
    style(item.path, files["sd3"], seed=6)
    with pytest.raises(RunError, match=r"a\.safetensors has changed since this run began"):
        distil(run)
    item.path.unlink()
    with pytest.raises(LoraError, match=r"no LoRA file .*a\.safetensors.*Put it back"):
        distil(run)
    shutil.copy(kept, item.path)
    assert distil(run).finished
    # edited settings, as if the strength or the file had always been another
    settings = run.settings()
    for name, value in (("strength", 0.5), ("path", str(style(kept, files["sd3"], seed=7).path))):
        entry = {**settings["teacher_loras"][0], name: value, "sha256": ""}
        run.write_json("settings.json", settings | {"teacher_loras": [entry]})
        with pytest.raises(RunError, match="other settings"):
            distil(run)


# settings that runs had before they existed, as long as they are at their defaults
LATER = (
    "zero_terminal_snr", "base_weights", "optimizer", "shift", "real_guidance",
    "real_guidance_low", "real_guidance_high", "renoise_anneal_steps",
)  # fmt: skip


def test_runs_without_loras_keep_their_fingerprint_and_old_settings_load(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], steps=1)
    distil(run)
    settings = run.settings()
    del settings["teacher_loras"], settings["include_teacher_loras"]
    run.write_json("settings.json", settings)
    session = open_session(run)
    assert session.trainer.resume(run) and session.request.teacher_loras == ()
    config = dataclasses.asdict(session.config)
    config = {k: v for k, v in config.items() if k not in (*MACHINE_SETTINGS, *LATER)}
    checkpoint = session.checkpoint
    encoders = {name: encoder_identity(part) for name, part in checkpoint.encoders.items()}
    facts = [config, PROMPTS, "ab" * 32, encoders, "torch.float32"]
    expected = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert run_fingerprint(session.config, PROMPTS, "ab" * 32, checkpoint) == expected


@pytest.mark.parametrize("damaged", [3, [3], [{"strength": 1}], [{"path": "x", "strength": "y"}]])
def test_damaged_settings_are_a_run_error(damaged, files, tmp_path):
    run = new_run(tmp_path, files["sd1"])
    run.write_json("settings.json", run.settings() | {"teacher_loras": damaged})
    with pytest.raises(RunError, match="does not describe a run"):
        distil(run)


def test_paths_are_absolute_and_every_front_end_finds_what_it_asked_for(
    files, tmp_path, monkeypatch
):
    style(tmp_path / "a.safetensors", files["sd1"])
    monkeypatch.chdir(tmp_path)
    run = new_run(tmp_path / "x", files["sd1"], teacher_loras=[("a.safetensors", -0.7)])
    (entry,) = run.settings()["teacher_loras"]
    assert entry["path"] == str(tmp_path / "a.safetensors") and entry["strength"] == -0.7
    assert entry["sha256"] == file_hashes(tmp_path / "a.safetensors").sha256


def test_the_command_line_passes_everything_on(files, tmp_path, capsys):
    first = style(tmp_path / "a.safetensors", files["sd1"], encoders=False).path
    second = style(tmp_path / "b.safetensors", files["sd1"], encoders=False, seed=9).path
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.safetensors"
    prompts.write_text("\n".join(PROMPTS))
    options = [f"--{k.replace('_', '-')}={v}" for k, v in (TINY | {"steps": 1}).items()]
    command = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--output", str(output)]
    command += ["--run", str(tmp_path / "run"), "--teacher-lora", f"{first}:0.5"]
    command += ["--teacher-lora", str(second), "--include-teacher-loras"]
    assert main([*command, *options]) == 0
    said = capsys.readouterr().err
    assert "Merged a.safetensors at strength 0.5" in said and "b.safetensors at strength 1" in said
    request = RunDirectory.open(tmp_path / "run").settings()
    assert request["include_teacher_loras"] and len(request["teacher_loras"]) == 2
    merged = read_lora(output).recipe.merged_loras
    assert [(lora.name, lora.strength) for lora in merged] == [
        ("a.safetensors", 0.5),
        ("b.safetensors", 1.0),
    ]
