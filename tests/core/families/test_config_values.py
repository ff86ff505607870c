"""Values of folder configs, which may be any JSON."""

from __future__ import annotations

import pytest
from dpdmd_studio.core.families.parts.config_values import is_number


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (0.18215, True),
        (0.182150001, True),
        (0.1822, False),
        (10**400, False),
        (-(10**400), False),
        (float("nan"), False),
        (float("inf"), False),
        (True, False),
        ("0.18215", False),
    ],
)
def test_a_number_is_near_another_or_not_whatever_it_is(value, fits):
    assert is_number(value, 0.18215) is fits
