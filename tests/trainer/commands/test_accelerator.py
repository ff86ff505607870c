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


@pytest.mark.slow
@pytest.mark.skipif(missing_tool() is not None, reason=f"cannot be built: {missing_tool()}")
@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_an_accelerator_is_the_run_on_the_cpu(case, tmp_path):
    """Trained, stopped, resumed, previewed, written, and drawn with."""
    command = [sys.executable, str(HERE / "accelerator_program.py"), str(tmp_path), case]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
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
