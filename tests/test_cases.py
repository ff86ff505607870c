"""Mistakes that people met, each a program of its own in tests/cases.

Those in `STILL_WRONG` are expected to fail still: one that begins to succeed is taken out of there.
A case that ends in an error of its own tells nothing and fails here, too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted((ROOT / "tests" / "cases").glob("*.py"))
STILL_WRONG = {
    "01-png-json-parameters",
    "08-nan-pictures",
    "10-tilde",
    "13-inspect-odd-loras",
    "15-lora-bundled-embedding",
    "16-lora-omi-keys",
    "17-lora-fp8",
    "18-prompts-literal-syntax",
    "19-infotext-settings-line",
    "26-prompt-extremes",
    "27-streams-and-numbers",
    "29-state-json",
    "30-zero-sized-and-old-names",
}


class StillWrong(AssertionError):  # noqa: N818
    """The product does what the case says is wrong."""


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


def params():
    for path in CASES:
        reason = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        wrong = pytest.mark.xfail(strict=True, raises=StillWrong, reason=reason)
        yield pytest.param(path, id=path.stem, marks=[wrong] * (path.stem in STILL_WRONG))


@pytest.mark.parametrize("case", list(params()))
def test_the_product_is_right(case, program):
    program.stdin.write(f"{case}\n")
    program.stdin.flush()
    found = json.loads(program.stdout.readline())
    wrong = [line for line in found["out"].splitlines() if line.startswith("WRONG: ")]
    if found["code"] == 1 and wrong:
        raise StillWrong("\n".join(wrong))
    assert found["code"] == 0 and not wrong, found  # else the case itself is broken
