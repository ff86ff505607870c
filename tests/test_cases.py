"""Mistakes that people met, each a program of its own in tests/cases: exit code 1 while wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted((ROOT / "tests" / "cases").glob("*.py"))


@pytest.fixture(scope="module")
def program():
    """The process that runs the cases."""
    command = [sys.executable, str(Path(__file__).with_name("cases_program.py")), str(ROOT)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_product_is_right(case, program):
    program.stdin.write(f"{case}\n")
    program.stdin.flush()
    found = json.loads(program.stdout.readline())
    wrong = [line for line in found["out"].splitlines() if line.startswith("WRONG: ")]
    assert found["code"] == 0 and not wrong, found
