"""A large state is saved rarely; nothing that was computed is lost by it but time."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.trainer.training import loop
from safetensors.torch import load_file
from tiny_runs import distil, new_run

SETTINGS = {"steps": 5, "save_every": 1, "evaluation_prompts": 0}


@pytest.fixture
def saved(monkeypatch) -> list[int]:
    """Updates whose state is saved, in order."""
    steps, original = [], RunDirectory.new_state
    monkeypatch.setattr(
        RunDirectory, "new_state", lambda run, step: steps.append(step) or original(run, step)
    )
    return steps


def loras(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_a_small_state_is_saved_whenever_a_lora_is(files, tmp_path, saved):
    run = new_run(tmp_path, files["sd1"], **SETTINGS)
    distil(run)
    assert saved == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("pause", "expected"), [(600.0, [1, 5]), (0.0, [1, 2, 3, 4, 5])])
def test_a_large_one_is_saved_when_the_last_is_old(
    pause, expected, files, tmp_path, saved, monkeypatch
):
    monkeypatch.setattr(loop, "LARGE_STATE", 1)
    monkeypatch.setattr(loop, "PAUSE", pause)
    run = new_run(tmp_path, files["sd1"], **SETTINGS)
    distil(run)
    assert saved == expected
    assert loras(run) == [f"step-{step:08d}.safetensors" for step in (1, 2, 3, 4, 5)]


def test_a_run_killed_long_after_its_large_state_resumes_exactly(
    files, tmp_path, saved, monkeypatch
):
    whole = new_run(tmp_path / "whole", files["sd1"], **SETTINGS)
    expected = load_file(distil(whole).lora)
    saved.clear()
    monkeypatch.setattr(loop, "LARGE_STATE", 1)
    run = new_run(tmp_path / "killed", files["sd1"], **SETTINGS)

    def kill(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(run, on_progress=kill)
    assert saved == [1]
    assert loras(run)[-1] == "step-00000004.safetensors"
    outcome = distil(run)
    assert outcome.finished
    assert saved == [1, 5]
    found = load_file(outcome.lora)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5]
