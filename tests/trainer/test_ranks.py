"""One run in several processes: the same numbers as in one, and no process that hangs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from dpdmd_studio import cli
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.environment.launched import Place, place, require_one_process
from dpdmd_studio.app.runs.directory import FollowedRun, RunDirectory
from dpdmd_studio.core.errors import RunError, SettingsError
from dpdmd_studio.trainer import device, distributed
from dpdmd_studio.trainer.commands import device_lock
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.commands.distill import create_run
from dpdmd_studio.trainer.distributed import Ranks, joined
from dpdmd_studio.trainer.memory.fit import needed_memory
from dpdmd_studio.trainer.model.network import NetworkCall
from dpdmd_studio.trainer.training.trainer import Trainer
from rank_runs import in_ranks, needs_fork, variables
from safetensors.torch import load_file
from tiny_runs import PROMPTS, TINY, distil, final_state, metrics_of, new_run, request_stop

# `anchor_error`, a ratio of roots, is averaged over the parts and no loss
ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("diversity_loss", "matching_gradient", "score_cosine", "fake_loss", "fake_grad_norm")
SAME_STUDENT = 2e-4
"""Of what was learnt: ten times what three updates of Adam make of rounding."""
QUICK = {
    "num_steps": 2, "teacher_steps": 2, "fake_updates": 1, "lora_layers": "attention",
    "student_lr": 1e-4, "steps": 3,
}  # fmt: skip


def distil_as_rank(rank: int, path: str) -> tuple[int, bool]:
    outcome = distil(RunDirectory(path))
    return outcome.step, outcome.finished


def assert_same_losses(one: RunDirectory, other: RunDirectory, tolerance: float = 1e-4) -> None:
    ours, theirs = metrics_of(one), metrics_of(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        for name in LOSSES:
            assert line[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance)


@needs_fork
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sd3", {"batch_size": 3, "share_rollouts": False, "steps": 5, "num_steps": 4,
                 "teacher_steps": 4, "fake_updates": 2}),
        ("sd1", {"batch_size": 4, "micro_batch_size": 1, "objective": "no_detach", "steps": 2}),
    ],
    ids=["uneven shares, separate rollouts", "micro-batches, shared rollouts"],
)  # fmt: skip
def test_two_processes_compute_what_one_does(family, settings, files, tmp_path):
    settings = QUICK | settings
    one = new_run(tmp_path / "one", files[family], **settings)
    two = new_run(tmp_path / "two", files[family], **settings)
    distil(one)
    steps = settings["steps"]
    assert in_ranks(2, distil_as_rank, two.path) == [(steps, True), (steps, True)]
    assert_same_losses(two, one)
    assert final_state(two).keys() == final_state(one).keys()
    assert (tmp_path / "two" / "student.safetensors").exists()
    assert two.read_json("progress.json")["status"] == "finished"
    assert {line.get("processes") for line in one.metrics()} == {None}
    assert {line.get("processes") for line in two.metrics()} == {2}


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["sd1", "sd3"])
def test_an_embedded_teacher_over_twenty_updates(teacher, tmp_path):
    path = ROOT / "trainer" / "assets" / f"shapes-{teacher}.safetensors"
    settings = {name: getattr(DistillConfig(), name) for name in TINY} | {"steps": 20}
    settings |= {"batch_size": 3, "preview_every": 0, "evaluate_every": 0}
    one, two = (new_run(tmp_path / name, path, **settings) for name in ("one", "two"))
    distil(one)
    assert in_ranks(2, distil_as_rank, two.path) == [(20, True), (20, True)]
    assert_same_losses(two, one)


def distil_one_update(rank: int, path: str) -> tuple[int, bool]:
    """Only the process that shows progress asks for the stop."""
    run = RunDirectory(path)
    outcome = distil(run, lambda progress: request_stop(run))
    return outcome.step, outcome.finished


@needs_fork
def test_a_run_goes_on_with_another_number_of_processes(files, tmp_path):
    straight = new_run(tmp_path / "straight", files["sd3"], **QUICK)
    distil(straight)
    run = new_run(tmp_path / "changing", files["sd3"], **QUICK)
    assert in_ranks(2, distil_one_update, run.path) == [(1, False), (1, False)]
    assert distil_one_update(0, str(run.path)) == (2, False)
    assert in_ranks(2, distil_as_rank, run.path) == [(3, True), (3, True)]
    assert_same_losses(run, straight)


def assert_same_student(one: RunDirectory, other: RunDirectory, tolerance: float) -> None:
    """What the finished LoRAs have learnt (up began at 0) differs by that share at most."""
    ours, theirs = (load_file(run.settings()["output"]) for run in (one, other))
    assert ours.keys() == theirs.keys()
    learnt = [name for name in ours if "lora_up" in name]
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in learnt)
    whole = sum(float(theirs[name].double().square().sum()) for name in learnt)
    assert (apart / whole) ** 0.5 <= tolerance


@needs_fork
def test_two_then_four_then_one_process_make_the_student_of_one(files, tmp_path):
    settings = QUICK | {"batch_size": 5}
    straight = new_run(tmp_path / "straight", files["sd3"], **settings)
    distil(straight)
    run = new_run(tmp_path / "changing", files["sd3"], **settings)
    assert in_ranks(2, distil_one_update, run.path) == [(1, False)] * 2
    assert in_ranks(4, distil_one_update, run.path) == [(2, False)] * 4
    assert distil_as_rank(0, str(run.path)) == (3, True)
    assert [line.get("processes") for line in run.metrics()] == [2, 4, None]
    assert_same_losses(run, straight)
    assert_same_student(run, straight, SAME_STUDENT)


def killed_in_the_second_update(rank: int, path: str) -> tuple[int, bool]:
    """The last process is killed, as by a system that has no memory left."""
    if rank == 2:
        original = Trainer.update

        def update(self):
            if self.step == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self)

        Trainer.update = update
    return distil_as_rank(rank, path)


@needs_fork
def test_a_process_killed_in_training_ends_all_and_the_run_goes_on_in_one(files, tmp_path):
    settings = QUICK | {"batch_size": 3, "save_every": 1}
    straight = new_run(tmp_path / "straight", files["sd3"], **settings)
    distil(straight)
    run = new_run(tmp_path / "killed", files["sd3"], **settings)
    first, second, third = in_ranks(3, killed_in_the_second_update, run.path)
    assert third == "died"
    for said in (first, second):
        assert said.startswith("OtherRankError: Another process of this run has ended")
        assert "resume the run" in said and "\n" not in said
    progress = run.read_json("progress.json")
    assert progress["status"] == "failed" and "Another process" in progress["error"]
    assert distil_as_rank(0, str(run.path)) == (3, True)
    assert_same_losses(run, straight)
    assert_same_student(run, straight, SAME_STUDENT)


def short_of_memory(rank: int, path: str) -> tuple[int, int]:
    """The second process has no room for two pictures at a time."""
    original = NetworkCall.__call__

    def call(self, x_t, timesteps, conditioning):
        small = len(x_t) == 1 and self.network.is_gradient_checkpointing
        if rank == 1 and torch.is_grad_enabled() and not small:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, x_t, timesteps, conditioning)

    NetworkCall.__call__ = call
    outcome = distil(RunDirectory(path))
    return outcome.step, outcome.session.config.micro_batch_size


@needs_fork
def test_all_come_down_when_one_runs_out_of_memory(files, tmp_path):
    settings = QUICK | {"batch_size": 4, "steps": 1}
    plain = new_run(tmp_path / "plain", files["sd3"], **settings)
    distil(plain)
    run = new_run(tmp_path / "run", files["sd3"], **settings)
    assert in_ranks(2, short_of_memory, run.path) == [(1, 1), (1, 1)]
    assert run.read_json("memory.json")["micro_batch_size"] == 1
    assert_same_losses(run, plain)


def fail_in_update(rank: int, path: str) -> str:
    if rank == 1:

        def update(self):
            raise RunError("the second process's own trouble")

        runner.open_session.__globals__["Trainer"].update = update
    distil(RunDirectory(path))
    return "finished"


@needs_fork
def test_a_failing_process_ends_the_others_with_its_words(files, tmp_path):
    run = new_run(tmp_path, files["sd3"], **QUICK)
    first, second = in_ranks(2, fail_in_update, run.path)
    assert first == "OtherRankError: Process 1 of 2 failed: the second process's own trouble"
    assert second == "RunError: the second process's own trouble"
    progress = run.read_json("progress.json")
    assert progress["status"] == "failed" and "own trouble" in progress["error"]


def failing(work) -> str:
    try:
        work()
    except (RunError, torch.OutOfMemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def run_out(rank: int) -> int:
    if rank == 1:
        raise torch.OutOfMemoryError("out of memory")
    return rank


def talk(rank: int, folder) -> dict[str, object]:
    ranks = joined()
    weight, unused, scalar = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 1, 1))
    weight.grad = torch.arange(3.0) * (rank + 1)
    scalar.grad = torch.tensor([10.0**rank])
    ranks.sum_gradients([weight, unused, scalar])
    with ranks.main_first():
        if ranks.is_main:
            (folder / "first").write_text("done")
        first = (folder / "first").exists()
    near, far = torch.ones(3) * (1 + 1e-5 * rank), torch.ones(3) * (1 + 0.1 * rank)
    return {
        "exchange": ranks.exchange({"rank": rank}),
        "any": [ranks.any(rank == 1), ranks.any(False)],
        "main": ranks.of_main(f"from {rank}"),
        "mean": ranks.mean([1.0 + rank, 4.0], 3),
        "sum": [weight.grad.tolist(), unused.grad, scalar.grad.tolist()],
        "first": first,
        "near": failing(lambda: ranks.require_equal("adapter", [near])),
        "far": failing(lambda: ranks.require_equal("adapter", [far])),
        "same": failing(lambda: ranks.require_same("their files", f"hash {rank}")),
        "memory": failing(lambda: ranks.attempt(lambda: run_out(rank))),
        "attempt": ranks.attempt(lambda: rank),
    }


@needs_fork
def test_what_processes_say_to_each_other(tmp_path):
    first, second = in_ranks(2, talk, tmp_path)
    assert first.pop("attempt") == 0 and second.pop("attempt") == 1
    assert "another process" in first.pop("memory")
    assert second.pop("memory") == "OutOfMemoryError: out of memory"
    assert first == second
    assert first["exchange"] == [{"rank": 0}, {"rank": 1}]
    assert first["any"] == [True, False] and first["main"] == "from 0" and first["first"]
    assert first["mean"] == pytest.approx([1 / 3 + 2 * 2 / 3, 4.0])  # shares: one row, two rows
    assert first["sum"] == [[0.0, 3.0, 6.0], None, [11.0]]
    assert first["near"] == "nothing" and "no longer have the same adapter" in first["far"]
    assert "differ in their files: hash 0, hash 1" in first["same"]


def die(rank: int) -> object:
    if rank == 1:
        joined()
        os.kill(os.getpid(), signal.SIGKILL)
    joined().exchange("are you there?")
    return "went on"


@needs_fork
def test_a_killed_process_is_noticed_at_once():
    first, second = in_ranks(2, die)
    assert second == "died"
    assert first.startswith("OtherRankError: Another process of this run has ended")


def fail_while_the_other_is_busy(rank: int) -> object:
    distributed.TELL_SECONDS = 0.2
    joined().exchange("hello")
    began = time.monotonic()
    if rank == 0:
        time.sleep(3)
        return joined().exchange("are you there?")
    with pytest.raises(RunError, match="own trouble"), joined().together():
        raise RunError("own trouble")
    return time.monotonic() - began


@needs_fork
def test_a_failing_process_does_not_wait_for_one_that_never_asks():
    first, seconds = in_ranks(2, fail_while_the_other_is_busy)
    assert seconds < 2 and first.startswith("OtherRankError: ")


def test_one_process_needs_no_connection(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # nor what would make it
    joined.cache_clear()
    ranks = joined()
    assert ranks.own_rows(3) == slice(0, 3) and ranks.exchange("x" * 4096)
    assert ranks.any(True) and not ranks.any(False) and ranks.mean([0.1], 3) == [0.1]
    with ranks.together(), ranks.main_first():
        assert ranks.attempt(lambda: 5) == 5
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("count", "size"), [(5, 2), (7, 3), (4, 4), (1024, 7)])
def test_shares_cover_the_batch_once_and_evenly(count, size):
    shares = [Ranks(Place(rank, size, rank)).own_rows(count) for rank in range(size)]
    rows = [row for share in shares for row in range(count)[share]]
    assert rows == list(range(count))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1 and min(lengths) >= 1


def test_each_process_needs_memory_for_its_share_alone():
    path = ROOT / "trainer" / "assets" / "emoji-sd3.safetensors"
    needs = needed_memory(path, torch.float32)
    share, whole = needs(DistillConfig(batch_size=3)), needs(DistillConfig(batch_size=5))
    assert whole > share
    assert needed_memory(path, torch.float32, processes=2)(DistillConfig(batch_size=5)) == share


def test_fewer_pictures_than_processes_are_refused():
    with pytest.raises(SettingsError, match=r"batch_size is 1 for 2.*--batch-size to 2"):
        Ranks(Place(0, 2, 0)).own_rows(1)


def make(rank: int, folder, checkpoint) -> str:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(TINY | {"batch_size": 2 if rank else 1}),
        output=str(folder / "student.safetensors"),
    )
    # their own idea of the folder's name, as two clocks would give
    return str(create_run(folder / f"run-{rank}", request, PROMPTS, overwrite=False).path)


@needs_fork
def test_a_refused_run_is_refused_everywhere_and_makes_nothing(files, tmp_path):
    first, second = in_ranks(2, make, tmp_path, files["sd3"])
    assert first.startswith("SettingsError: batch_size is 1 for 2 processes")
    assert second.startswith("OtherRankError: Process 0 of 2 failed: batch_size is 1")
    assert list(tmp_path.iterdir()) == []


def test_the_place_comes_from_the_launcher(monkeypatch):
    assert place({}) == Place() and place({"WORLD_SIZE": "1", "RANK": "0"}) == Place()
    assert place(variables(1, 2, 0)) == Place(1, 2, 1)
    with pytest.raises(SettingsError, match="LOCAL_RANK=not set"):
        place({"WORLD_SIZE": "2", "RANK": "1"})
    with pytest.raises(SettingsError, match="do not go together"):
        place(variables(2, 2, 0))
    require_one_process("`sample`")
    for name, value in variables(1, 2, 0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="`sample` runs in one process, found 2"):
        require_one_process("`sample`")


def test_a_pytorch_for_one_process_says_so(monkeypatch):
    for name, value in variables(0, 2, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    joined.cache_clear()
    try:
        with pytest.raises(SettingsError, match="2 processes needs a PyTorch built with"):
            joined()
    finally:
        joined.cache_clear()


def test_what_accelerate_cannot_connect_is_explained(monkeypatch):
    def refuse(**kwargs):
        raise ImportError("DeepSpeed is not available.")

    for name, value in variables(0, 2, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("accelerate.PartialState", refuse)
    joined.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"2 processes.*DeepSpeed.*--multi_gpu"):
            joined()
    finally:
        joined.cache_clear()


def test_commands_that_draw_refuse_several_processes(monkeypatch, capsys):
    for name, value in variables(0, 2, 0).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["runs"]) == 2
    assert "runs in one process, found 2" in capsys.readouterr().err


def test_each_process_takes_and_locks_its_own_device(monkeypatch):
    assert device._own_device("cuda") == "cuda"
    for name, value in (variables(3, 4, 0) | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert device._own_device("cuda") == "cuda:1" and device._own_device("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(device_lock.socket, "gethostname", lambda: "second")
    assert device_lock.device_name(torch.device("cuda:1")) == "cuda-7-second"
    assert device_lock.device_name(torch.device("cpu")) == "cpu-second"
    monkeypatch.setenv("LOCAL_RANK", "3")  # on the first process's machine
    assert device_lock.device_name(torch.device("cuda:1")) == "cuda-7"


def test_a_followed_run_is_read_and_never_written(files, tmp_path):
    run = new_run(tmp_path, files["sd3"])
    before = sorted(path.name for path in run.path.rglob("*"))
    followed = FollowedRun(run.path)
    with followed.lock():
        followed.write_json("progress.json", {})
        followed.append_metrics({"step": 1})
        followed.truncate_metrics(0)
        followed.clear_requests()
    assert sorted(path.name for path in run.path.rglob("*")) == before
    assert followed.settings() == run.settings()
