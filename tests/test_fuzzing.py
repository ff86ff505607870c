"""A short run of what `benchmarks/fuzz.py` does at length: no foreign exception, nothing slow."""

from __future__ import annotations

import fuzzing
import pytest


@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_inputs_end_in_an_answer_or_in_one_of_our_errors(kind, tmp_path):
    found = fuzzing.run(kind, range(200), tmp_path, seconds=20)
    assert not found.foreign, found.foreign[0]
    assert found.slowest[0] < fuzzing.LONGEST, found.slowest
    assert found.inputs > 20 and found.answered, found
    assert found.refused or kind == "image texts", found  # which are all left out without a word
