"""The queue with its real worker process, and what the trainer does for runs of the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.runs import exit_note
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.commands.device_lock import device_name
from tiny_runs import TINY, distil, heard, new_run

PATIENCE_SECONDS = 120


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, [(j.title, j.state, j.message) for j in jobs.all_jobs()]
        time.sleep(0.05)


def ended(*ids: str) -> bool:
    return all(jobs.get_job(id).state not in (*jobs.LIVE, "queued") for id in ids)


@pytest.fixture
def request_for(files, tmp_path, home) -> Callable[..., DistillRequest]:
    def made(name: str, **settings) -> DistillRequest:
        return DistillRequest(
            model=ModelFiles(checkpoint=str(files["sd3"])),
            config=DistillConfig.from_dict(TINY | settings),
            output=str(tmp_path / f"{name}.safetensors"),
            created_at=1.0,
        )

    return made


def test_the_queue_runs_one_after_another_and_a_stopped_run_goes_on(request_for, tmp_path):
    long = jobs.submit_distill(request_for("long", steps=300), ["a cat"], "long")
    hopeless = jobs.submit_task("compare", ["--no-such-option"], "hopeless")
    until(lambda: jobs.get_job(long.id).live)
    setup = jobs.submit_task("setup", ["--help"], "Set-up")  # noticed without a restart
    assert jobs.get_job(setup.id).place == 0 and jobs.get_job(hopeless.id).place == 1

    def two_updates_done() -> bool:
        assert sum(job.live for job in jobs.all_jobs()) == 1
        return jobs.get_job(long.id).step >= 2

    until(two_updates_done)
    with pytest.raises(RunError, match="Stop it"):
        jobs.delete(long.id)
    assert jobs.stop(long.id).state == "stopping"
    until(lambda: ended(long.id, hopeless.id, setup.id))
    stopped, failed = jobs.get_job(long.id), jobs.get_job(hopeless.id)
    assert stopped.state == "stopped" and 2 <= stopped.step < 300
    assert failed.state == "failed" and failed.message.startswith(
        "the following arguments are required"
    )
    assert jobs.get_job(setup.id).state == "finished"
    assert "usage: python install.py" in jobs.log_tail(setup.id)
    assert read_lora(tmp_path / "long.safetensors").recipe is not None
    until(lambda: not jobs.worker_lives())  # it ends when nothing is left to do

    jobs.start(long.id)
    until(lambda: jobs.get_job(long.id).step > stopped.step)
    jobs.stop(long.id)
    until(lambda: ended(long.id))
    steps = [line["step"] for line in RunDirectory.open(long.path).metrics()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > stopped.step
    assert f"Resuming after update {stopped.step}" in jobs.log_tail(long.id, 999)


def test_a_queued_run_is_prepared_as_one_made_in_a_terminal(request_for, tmp_path):
    prompts = [f"a {word} cat, {{red|blue}}" for word in "abcdefghijkl"]
    request = request_for("same")
    job = jobs.submit_distill(request, prompts, "same", queue=False)
    here = RunDirectory.open(job.path)
    there = runner.create_run(tmp_path / "there", request, prompts, overwrite=False)
    assert here.prompts() == prompts and here.evaluation_prompts() == []
    runner.prepare(here)
    runner.prepare(here)  # nothing is held out twice
    assert here.settings() == there.settings()
    assert here.prompts() == there.prompts() and len(here.prompts()) < len(prompts)
    assert here.evaluation_prompts() == there.evaluation_prompts() != []


@pytest.mark.parametrize("killed_before", ["settings.json", "given-prompts.txt", "unprepared"])
def test_a_preparation_cut_short_is_done_again(request_for, tmp_path, monkeypatch, killed_before):
    prompts = [f"a {word} cat" for word in "abcdefghijkl"]
    job = jobs.submit_distill(request_for("cut"), prompts, "cut", queue=False)
    run = RunDirectory.open(job.path)

    class Killed(BaseException):
        pass

    def die(self, *_, **__):
        if killed_before in (getattr(self, "name", None), *_):
            raise Killed
        return original(self, *_, **__)

    with monkeypatch.context() as patch:
        owner, name = (
            (RunDirectory, "write_json")
            if killed_before == "settings.json"
            else (type(run.path), "unlink")
        )
        original = getattr(owner, name)
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            runner.prepare(run)
    runner.prepare(run)
    again = runner.create_run(tmp_path / "again", request_for("cut"), prompts, overwrite=False)
    assert run.prompts() == again.prompts()
    assert run.evaluation_prompts() == again.evaluation_prompts()


def test_a_terminal_is_told_what_runs_and_how_to_queue(files, tmp_path, home, capsys):
    run = new_run(tmp_path, files["sd3"])
    (home / "locks").mkdir(parents=True)
    with owned(home / "locks" / "cpu.json", about="/runs/another one"):
        assert main(["resume", str(run.path)]) == 2
        message = capsys.readouterr().err
        assert "/runs/another one" in message and "distill --queue" in message
        assert not (run.path / "progress.json").exists()  # as if it had never been tried
    assert not (run.path / "lock.json").exists()


def test_a_run_of_the_queue_waits_for_its_device(files, tmp_path, home, monkeypatch):
    run = new_run(tmp_path, files["sd3"], steps=1)
    monkeypatch.setenv(exit_note.VARIABLE, str(run.path))
    (home / "locks").mkdir(parents=True)
    let_go = threading.Event()

    def hold() -> None:
        with owned(home / "locks" / "cpu.json", about="another one"):
            held.set()
            let_go.wait(PATIENCE_SECONDS)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE_SECONDS)

    with heard(lambda text: let_go.set()) as said:  # it says that it waits, and is let in
        outcome = distil(run)
    holder.join()
    assert outcome.finished and said[0] == "Waiting for cpu: another one runs on it"
    assert not (home / "locks" / "cpu.json").exists()


def test_two_runs_on_one_device_exclude_each_other(files, tmp_path, home):
    first, second = (new_run(tmp_path / name, files["sd3"], steps=1) for name in "ab")
    refused = []

    def meanwhile(progress) -> None:
        with pytest.raises(RunError, match="one run at a time") as caught:
            distil(second)
        refused.append(str(caught.value))

    distil(first, meanwhile)
    assert len(refused) == 1 and str(first.path) in refused[0]
    assert distil(second).finished


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", "", "cpu"),
        ("cuda", "", "cuda-0"),
        ("cuda:1", "", "cuda-1"),
        ("cuda:1", "3, 2", "cuda-2"),
        ("cuda:0", "GPU-8932f937-d72c", "cuda-GPU-8932f937-d72c"),
        ("cuda:0", "MIG/../x", "cuda-MIG----x"),
    ],
)
def test_a_card_has_the_same_name_whatever_a_process_sees(device, visible, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_name(torch.device(device)) == name
