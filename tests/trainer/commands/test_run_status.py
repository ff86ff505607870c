"""What front ends read of a run: another status at once, the same one at most once a second."""

from __future__ import annotations

import os
import signal

import pytest
from dpdmd_studio.trainer.commands import run_status
from dpdmd_studio.trainer.training.loop import HICCUP, Progress, smoothed


class Run:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[dict] = []

    def write_json(self, name: str, facts: dict) -> None:
        self.written.append(facts)


@pytest.fixture
def run(monkeypatch) -> Run:
    monkeypatch.setattr(run_status.time, "monotonic", lambda: run_status_clock[0])
    run_status_clock[0] = 100.0
    return Run()


run_status_clock = [100.0]


def test_the_first_update_is_noted_at_once_however_quickly_it_came(run):
    # or a stop would take a run that has learned for one that is still loading, and end it
    status = run_status.Status(run)  # type: ignore[arg-type]
    status.write("loading", force=True)
    run_status_clock[0] += 0.1
    status.write("running", progress=Progress(1, 9, {}, 0.1))
    assert [(f["status"], f.get("step")) for f in run.written] == [
        ("loading", None),
        ("running", 1),
    ]


def test_later_updates_are_noted_at_most_once_a_second(run):
    status = run_status.Status(run)  # type: ignore[arg-type]
    for step in range(1, 26):
        status.write("running", progress=Progress(step, 99, {}, 0.1))
        run_status_clock[0] += 0.125
    assert [facts["step"] for facts in run.written] == [1, 9, 17, 25]
    status.write("stopped", force=True)
    assert run.written[-1]["status"] == "stopped" and run.written[-1]["step"] == 25


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_only_a_second_ctrl_c_ends_at_once():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with run_status.Interrupt() as interrupt:
        assert not interrupt.stop_wanted()
        for name in ("SIGTERM", "SIGHUP", "SIGTERM"):
            os.kill(os.getpid(), getattr(signal, name))
        assert interrupt.stop_wanted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run_status.Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_computer_that_slept_does_not_spoil_the_time_left():
    average = 0.0
    for seconds in [30.0, *[2.0] * 60, 8 * 3600.0, 2.0]:
        average = smoothed(average, seconds)
    assert 2.0 < average < 2.0 + 0.2 * HICCUP
    for _ in range(60):  # what is truly slower is believed
        average = smoothed(average, 20.0)
    assert average == pytest.approx(20.0, rel=0.02)
