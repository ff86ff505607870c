"""What a run has on disk at most, and the refusal where that is more than there is."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from dpdmd_studio.app import disk
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.jobs import actions
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import OutputError
from dpdmd_studio.core.families import Detection, identify
from dpdmd_studio.trainer.evaluation import monitor, previews
from tiny_runs import distil, new_run

TEACHER = Path(__file__).parents[2] / "trainer" / "assets" / "emoji-sd3.safetensors"
SDXL = Detection(
    family="sdxl",
    title="SDXL",
    prediction="eps",
    latent_channels=4,
    denoiser_prefix="",
    resolution=1024,
    resolution_multiple=8,
)
Usage = namedtuple("Usage", "total used free")


def use(**settings) -> disk.DiskUse:
    return disk.disk_use(SDXL, DistillConfig.from_dict(settings), 6_869_719_733)


def test_what_is_counted_is_what_the_trainer_draws():
    assert previews.PREVIEW_PROMPTS * len(previews.PREVIEW_SEEDS) == disk.IMAGES_OF_A_PREVIEW
    assert monitor.MEASURED_PROMPTS * len(monitor.EVALUATION_SEEDS) == disk.MEASURED_IMAGES
    asked = {"steps": 250, "preview_every": 100, "evaluate_every": 0}
    drawn = object.__new__(previews.Previews)
    drawn._session = SimpleNamespace(config=DistillConfig(**asked))  # type: ignore[assignment]
    students = [step for step in range(1, 251) if drawn.due(step)]
    assert students == [5, 100, 200, 250]  # the first one early: one sees that it works
    counted = use(**asked).images / (1024 * 1024 * disk.BYTES_OF_A_PIXEL)
    assert counted == disk.IMAGES_OF_A_PREVIEW * len(["teacher", *students])
    often = object.__new__(previews.Previews)
    often._session = SimpleNamespace(config=DistillConfig(steps=9, preview_every=4))  # type: ignore
    assert [step for step in range(1, 10) if often.due(step)] == [4, 8, 9]


def test_bytes_follow_from_the_settings():
    """A state of SDXL at rank 64: two adapters with two moments each, 4.7 GB."""
    usual = use(steps=1000)
    assert 4.5e9 < usual.states / 2 < 4.9e9
    assert usual.loras == pytest.approx(6 * usual.result) and 0.38e9 < usual.result < 0.41e9
    once = use(steps=1000, save_every=1000)
    assert once.states == pytest.approx(usual.states / 2) and once.loras == usual.result
    averaged = use(steps=1000, ema_decay=0.99)
    assert averaged.states - usual.states == pytest.approx(2 * 2 * usual.result)
    assert use(steps=1000, optimizer="adamw8bit").states < 0.52 * usual.states
    small = use(steps=1000, student_rank=32, fake_rank=32)
    assert small.states == pytest.approx(usual.states / 2)
    assert use(steps=1000, evaluate_every=0).best == 0
    nothing = use(steps=1000, evaluate_every=0, preview_every=0)
    assert nothing.images == 0 and nothing.in_run == nothing.states + nothing.loras
    assert use(steps=1000, resolution="512x512").images == usual.images / 4


def request(folder: Path, **settings) -> DistillRequest:
    return DistillRequest(
        model=ModelFiles(checkpoint=str(TEACHER)),
        config=DistillConfig.from_dict(settings),
        output=str(folder / "student.safetensors"),
    )


def needed(asked: DistillRequest) -> disk.DiskUse:
    return disk.disk_use(identify(TEACHER), asked.config, disk.bytes_in_16_bit(TEACHER))


def test_too_full_a_disk_is_named_with_what_to_do(tmp_path, monkeypatch):
    asked = request(tmp_path)
    whole = needed(asked).in_run + needed(asked).result
    free = [whole + 1]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 0, free[0]))
    folder = tmp_path / "runs" / "new"  # not made yet
    disk.check_room(folder, asked)
    free[0] = 1 << 20
    with pytest.raises(
        OutputError, match=r"has 1.0 MB free.*saved states [\d.]+ MB.*--student-rank"
    ):
        disk.check_room(folder, asked)
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"0" * (int(whole) + 1))  # makes room for what replaces it
    disk.check_room(folder, asked)


def test_a_lora_on_a_disk_of_its_own_counts_there(tmp_path, monkeypatch):
    asked = request(tmp_path / "loras")
    other = {tmp_path / "loras": 1, tmp_path / "runs": 2}
    free = {tmp_path / "loras": 1 << 10, tmp_path / "runs": 10**12}
    for folder in other:
        folder.mkdir()
    monkeypatch.setattr(disk, "_device", lambda folder: other.get(folder, 2))
    monkeypatch.setattr(disk, "_free", lambda folder: free.get(folder, 10**12))
    with pytest.raises(OutputError, match="the LoRA will take"):
        disk.check_room(tmp_path / "runs" / "new", asked)


def test_a_disk_that_does_not_tell_is_taken_as_it_is(tmp_path, monkeypatch):
    asked = dataclasses.replace(request(tmp_path, steps=1_000_000), overwrite=True)
    for answer in (Usage(0, 0, 0), OSError("no such call")):

        def told(path, answer=answer):
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(disk.shutil, "disk_usage", told)
        disk.check_room(tmp_path / "run", asked)


@pytest.mark.usefixtures("home")
def test_a_run_that_does_not_fit_is_refused_before_it_is_made_and_when_it_begins(
    files, tmp_path, monkeypatch, capsys
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat")
    run = new_run(tmp_path / "made", files["sd1"])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 0, 10))
    with pytest.raises(OutputError, match="has 10 bytes free"):
        distil(run)
    assert run.read_json("progress.json")["status"] == "failed"
    options = ["--output", str(tmp_path / "out.safetensors"), "--run", str(tmp_path / "run")]
    assert main(["distill", str(files["sd1"]), "--prompts", str(prompts), *options]) == 2
    assert "has 10 bytes free" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(OutputError, match="has 10 bytes free"):
        actions.submit_distill(DistillRequest.from_dict(run.settings()), ["a cat"], "")
    monkeypatch.undo()
    assert distil(run).finished
