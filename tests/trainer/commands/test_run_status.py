"""What front ends read of a run: another status at once, the same one at most once a second."""

from __future__ import annotations

import pytest
from dpdmd_studio.trainer.commands import run_status
from dpdmd_studio.trainer.training.loop import Progress


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
