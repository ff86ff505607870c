"""Runs on an accelerator that is pretended: what lies where, on machines without one.

Its tensors have a device of their own, as on a GPU, and its operators run on the CPU: a tensor that
was left on the wrong side fails here, and a run learns what it learns on the CPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerator_program import RUNS
from pretended.device import NAME, missing_tool

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The process that has the device, and the file with what it says besides its findings."""
    folder = tmp_path_factory.mktemp("accelerator")
    command = [sys.executable, str(HERE / "accelerator_program.py"), str(folder)]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with (
        (folder / "said").open("w") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            text=True, env=environment, cwd=HERE,
        ) as process,
    ):  # fmt: skip
        yield process, folder / "said"
        process.stdin.close()


def findings(program, case: str) -> dict:
    """What the program found in a case; it fails here where the case failed there."""
    process, said = program
    process.stdin.write(f"{case}\n")
    process.stdin.flush()
    for line in process.stdout:  # a command of the case prints, too
        if line.startswith('{"case": '):
            found = json.loads(line)
            assert found["case"] == case and "error" not in found, found.get("error")
            return found
    raise AssertionError(said.read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.skipif(missing_tool() is not None, reason=f"cannot be built: {missing_tool()}")
@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_an_accelerator_is_the_run_on_the_cpu(case, program):
    """Trained, stopped, resumed, previewed, written, and drawn with."""
    found = findings(program, case)
    there, here = found[NAME], found["cpu"]
    assert there["devices"] == [NAME] and here["devices"] == ["cpu"]
    assert there["sample"] == here["sample"] == 0
    assert there["previews"] == here["previews"]
    assert len(there["metrics"]) == len(here["metrics"]) == 4
    close = 1e-3 if case != "bfloat16" else 0.2
    for line, expected in zip(there["metrics"], here["metrics"], strict=True):
        assert line.keys() == expected.keys()
        assert all(math.isclose(line[k], expected[k], rel_tol=close) for k in line), (
            line,
            expected,
        )
    # Adam makes steps of full size of gradients that are rounding alone: the smallest norms differ
    assert there["student"] == pytest.approx(here["student"], rel=close, abs=5e-3)
