"""LoRA files, reports, help texts, nodes and pages are those of tests/goldens."""

from __future__ import annotations

import golden_runs
import pytest


@pytest.fixture(scope="module")
def place():
    with golden_runs.workplace() as found:
        yield found


@pytest.mark.parametrize("case", golden_runs.LORAS)
def test_lora_files_are_what_they_were(case, place):
    golden_runs.check("loras", place, case)


@pytest.mark.parametrize("case", ["compare", "run"])
def test_reports_are_what_they_were(case, place):
    golden_runs.check("reports", place, case)


@pytest.mark.parametrize("case", golden_runs.COMMANDS)
def test_help_texts_are_what_they_were(case, place):
    golden_runs.check_help(place, case)


def test_every_command_has_a_golden_help_text():
    cases = golden_runs.read("help")["cases"]
    assert list(cases) == list(golden_runs.COMMANDS)
    for case, text in cases.items():
        below = [f"{case} {name}".strip() for name in text["commands"]]
        assert set(below) <= set(cases), case


@pytest.mark.parametrize("case", ["nodes", "pages", "webui"])
def test_what_the_hosts_see_is_what_it_was(case, place):
    golden_runs.check("hosts", place, case)


def test_numbers_of_another_machine_may_be_rounded_and_nothing_else():
    golden = {"a": [1.0, "x", 3], "b": "hash " + "a" * 64}
    near = {"a": [1.005, "x", 3], "b": "hash " + "b" * 64}
    far = {"a": [1.05, "y", 4], "c": 1}
    assert not list(golden_runs.differences(near, golden, exact=False))
    assert len(list(golden_runs.differences(near, golden, exact=True))) == 2
    assert len(list(golden_runs.differences(far, golden, exact=False))) == 5
    rates, apart = {"student_lr": 1e-4}, {"student_lr": 3e-4}
    assert list(golden_runs.differences(apart, rates, exact=False))
    distances = {"teacher_distance": -0.0118}, {"teacher_distance": -0.0116}
    assert not list(golden_runs.differences(*distances, exact=False))
