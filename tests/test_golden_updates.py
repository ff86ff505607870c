"""Seeded updates of every family and objective give the numbers of tests/goldens/updates.json."""

from __future__ import annotations

import golden_runs
import pytest


@pytest.fixture(scope="module")
def place():
    with golden_runs.workplace() as found:
        yield found


@pytest.mark.parametrize("case", golden_runs.update_cases())
def test_updates_are_what_they_were(case, place):
    golden_runs.check("updates", place, case)


def test_the_golden_has_no_other_cases():
    assert list(golden_runs.read("updates")["cases"]) == list(golden_runs.update_cases())
