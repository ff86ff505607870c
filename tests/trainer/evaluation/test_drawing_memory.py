"""Drawing on a device that is nearly full: again, one picture at a time."""

from __future__ import annotations

import pytest
import torch
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.evaluation import evaluate
from dpdmd_studio.trainer.evaluation.previews import Previews
from tiny_runs import heard, new_run


@pytest.mark.parametrize("largest", [1, 0])
def test_a_preview_is_drawn_one_by_one_or_left_out(largest, files, tmp_path, monkeypatch):
    drawn: list[int] = []
    original = evaluate.integrate

    def integrate(call, latents, *arguments):
        drawn.append(len(latents))
        if len(latents) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(call, latents, *arguments)

    monkeypatch.setattr(evaluate, "integrate", integrate)
    run = new_run(tmp_path, files["sd1"], preview_every=1)
    session = open_session(run)
    with heard() as said:
        Previews(run, session).student(1)
    path = run.previews / "step-00000001.png"
    if largest:
        assert drawn[0] == 2 and set(drawn[1:]) == {1} and path.is_file() and not said
    else:
        assert drawn == [2, 1] and not path.exists()
        assert "left out" in said[0] and "--preview-every 0" in said[0]
