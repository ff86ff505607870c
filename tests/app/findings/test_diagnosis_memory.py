"""When a run says that the driver moves its memory to system RAM."""

from __future__ import annotations

import pytest
from dpdmd_studio.app.findings.diagnosis import diagnose_facts
from dpdmd_studio.app.runs.facts import RunFacts

GIB = 2**30


def facts(seconds: list[float], free: float | None) -> RunFacts:
    line = {} if free is None else {"free_memory_bytes": free, "device_memory_bytes": 8 * GIB}
    return RunFacts(metrics=[{"step": i + 1, "seconds": s} | line for i, s in enumerate(seconds)])


def titles(run: RunFacts) -> list[str]:
    return [finding.title for finding in diagnose_facts(run)]


def test_sudden_slowness_on_a_full_card_is_named():
    found = diagnose_facts(facts([9.0, 1.0, 1.0, 1.1, 0.9, 1.0, 6.0, 7.0], 0.1 * GIB))
    assert [finding.title for finding in found] == ["Memory spills to system RAM"]
    assert found[0].level == "problem"
    assert "takes 6 s; it took 1 s before" in found[0].text and "1% of its memory" in found[0].text


@pytest.mark.parametrize(
    ("seconds", "free"),
    [
        ([1.0] * 6 + [6.0, 7.0], GIB),  # there is room
        ([1.0] * 6 + [6.0, 7.0], None),  # not known
        ([1.0] * 6 + [6.0, 1.0], 0.0),  # a hiccup
        ([1.0] * 6 + [4.0, 4.5], 0.0),  # other work on the machine
        ([1.0, 1.0, 6.0, 7.0], 0.0),  # too early to know
    ],
)
def test_other_slowness_is_not(seconds, free):
    assert "Memory spills to system RAM" not in titles(facts(seconds, free))


def test_it_is_said_once():
    run = facts([1.0] * 50 + [8.0] * 20, 0.0)
    assert titles(run).count("Memory spills to system RAM") == 1
    assert "Updates have become slower" not in titles(run)


@pytest.mark.parametrize("free", [0.0, None])
def test_a_computer_that_slept_is_not_called_slow(free):
    """Each night makes one update of hours; a clock that was set back, one of no time at all."""
    nights = [8 * 3600.0 if i % 40 == 39 else 1.0 for i in range(200)]
    for seconds in (nights, [*nights, *[1.0] * 13], [1.0] * 100 + [0.0] + [1.0] * 100):
        assert not {"Memory spills to system RAM", "Updates have become slower"} & set(
            titles(facts(seconds, free))
        )
