"""What people reported to other programs is read here, or refused by name."""

from __future__ import annotations

import pytest
import reports


@pytest.mark.parametrize("reference", reports.REPORTS)
def test_a_reported_input_is_read_or_refused_by_name(reference, tmp_path):
    expected = reports.REPORTS[reference].expected
    found = reports.outcome(reference, tmp_path)
    assert found == expected or (expected != "read" and expected in found), found
