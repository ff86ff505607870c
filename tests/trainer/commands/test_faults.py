"""A run that meets a fault finishes, or stops with its work kept and one line that says what to do.

Some faults of each stage; `benchmarks/faults.py` plants them all, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import faulting
import pytest
from dpdmd_studio.core.errors import RunError
from dpdmd_studio.core.lora.file import read_lora
from faulting import DISK, KILL, LOST, NO_NUMBERS, ODD, UNREADABLE
from tiny_runs import distil

SOME = {
    "encoding prompts": (ODD,),
    "loading the denoiser": (UNREADABLE,),
    "loading a state": (NO_NUMBERS, UNREADABLE),
    "first update": (KILL,),
    "fake update": (LOST,),
    "optimizer step": (NO_NUMBERS,),
    "saving a state": (NO_NUMBERS, KILL),
    "measurement": (ODD, DISK),
    "preview": (LOST,),
    "decoding": (NO_NUMBERS,),
    "writing the LoRA": (UNREADABLE, KILL),
    "report": (DISK, LOST),
}


class Killed(BaseException):
    """Stands for a process that ends without a chance to clean up."""


def die() -> None:
    raise Killed


@pytest.fixture(autouse=True)
def alike(monkeypatch) -> None:
    faulting.quick_and_alike(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory) -> Iterator[bytes]:
    """The LoRA of a run that met no fault."""
    with pytest.MonkeyPatch.context() as patch:
        faulting.quick_and_alike(patch)
        run = faulting.new_run(tmp_path_factory.mktemp("undisturbed") / "made", files["sd3"])
        assert faulting.go_on(run).code == 0
        yield faulting.lora_of(run)


def test_every_stage_is_tried():
    assert SOME.keys() == faulting.STAGES.keys()


@pytest.mark.parametrize(
    ("stage", "fault"), [(stage, fault) for stage, faults in SOME.items() for fault in faults]
)
def test_a_fault_costs_no_work(stage, fault, files, tmp_path, home, undisturbed):
    run = faulting.new_run(tmp_path / "made", files["sd3"])
    if faulting.STAGES[stage].begun:
        faulting.distil_to_two(run)
    with pytest.MonkeyPatch.context() as patch:
        planter = faulting.plant(stage, fault, patch, tmp_path, die)
        if fault == UNREADABLE:
            planter.root = files["sd3"].parents[1]
        try:
            ended = faulting.go_on(run)
        except Killed:
            ended = faulting.Ended(-9)
    if fault != KILL:
        assert planter.reached
    did, wrong = faulting.verdict(stage, fault, ended, run, undisturbed)
    assert not wrong, (ended, wrong)
    status = run.read_json("progress.json")["status"]
    if did == "finishes":
        assert status == "finished" or fault == DISK
        return
    assert fault in (KILL, DISK) or status == "failed"  # a full disk takes no note
    assert faulting.go_on(run).code == 0
    assert faulting.lora_of(run) == undisturbed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_is_one_ctrl_c(name, files, tmp_path, home, request):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # below nohup it is ignored, and stays so
    request.addfinalizer(lambda: signal.signal(number, before))
    run = faulting.new_run(tmp_path / "made", files["sd3"])

    def told(progress) -> None:
        for _ in range(3):  # whoever sends it may send it again
            os.kill(os.getpid(), number)

    outcome = distil(run, told)
    assert (outcome.finished, outcome.step, faulting.kept_state(run)) == (False, 1, 1)
    assert read_lora(outcome.lora).recipe is not None
    assert run.read_json("progress.json")["status"] == "stopped"


def test_a_gpu_that_is_gone_is_named_before_another_device_goes_on(files, tmp_path, home):
    run = faulting.new_run(tmp_path / "made", files["sd3"])
    faulting.distil_to_two(run)
    path = run.latest_state() / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    with pytest.raises(RunError, match=r"in bfloat16 until it stopped.*Probably the GPU is gone"):
        distil(run)


def test_what_the_queue_noted_of_an_earlier_start_is_forgotten(files, tmp_path, home):
    run = faulting.new_run(tmp_path / "made", files["sd3"])
    note = run.path / "exit.json"
    note.write_text(json.dumps({"code": 2, "message": "Why.", "at": 9e9}))  # of a clock ahead
    assert distil(run).finished
    assert not note.exists()
