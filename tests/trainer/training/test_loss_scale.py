"""Float16: a step whose gradient overflows is left out, and the run goes on exactly as it would."""

from __future__ import annotations

import json

import pytest
import torch
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.core.errors import NonFiniteError, RunError
from dpdmd_studio.trainer.commands.open_session import open_session
from dpdmd_studio.trainer.method import equations
from dpdmd_studio.trainer.model import loss_scale
from dpdmd_studio.trainer.model.loss_scale import GROWS_AFTER, HIGHEST, MOST_IN_A_ROW, LossScale
from tiny_runs import distil, final_state, heard, metrics_of, new_run, request_stop

# with a larger weight the random network overflows at once
HALF = {"dtype": "float16", "ema_decay": 0.0, "fake_updates": 1, "diversity_weight": 0.05}


def poison(monkeypatch, updates) -> None:
    """Let the student's loss overflow in these updates, counted from 1 by this process."""
    original, calls = equations.dmd_loss, []

    def poisoned(x0, gradient):
        calls.append(1)
        loss = original(x0, gradient)
        return loss * float("inf") if len(calls) in updates else loss

    monkeypatch.setattr(equations, "dmd_loss", poisoned)


def saved_scale(run: RunDirectory, role: str = "student") -> dict:
    return json.loads((run.latest_state() / "state.json").read_text())["loss_scales"][role]


def test_a_factor_falls_at_once_and_grows_back_slowly():
    scale = LossScale()
    for _ in range(3):
        scale.note(finite=False)
    assert (scale.factor, scale.in_a_row, scale.left_out) == (HIGHEST / 8, 3, 3)
    for _ in range(GROWS_AFTER - 1):
        scale.note(finite=True)
    assert (scale.factor, scale.in_a_row) == (HIGHEST / 8, 0)
    scale.note(finite=True)
    assert (scale.factor, scale.steps) == (HIGHEST / 4, 0)
    for _ in range(10 * GROWS_AFTER):
        scale.note(finite=True)
    assert scale.factor == HIGHEST
    for count in range(1, 20):
        scale.note(finite=False)
        assert scale.gives_up == (count >= MOST_IN_A_ROW)
    assert scale.factor == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"factor": 3e4}, {"factor": "4"}, {"factor": float("nan")}, {"steps": -1}, {"left_out": 1.0}],
)
def test_a_damaged_one_is_not_taken(wrong):
    with pytest.raises(ValueError, match="loss scale"):
        LossScale().load(LossScale().to_dict() | wrong)


def test_one_overflow_costs_one_step_and_is_said_once(files, tmp_path, monkeypatch):
    run = new_run(tmp_path, files["sd1"], **HALF)
    poison(monkeypatch, {2, 3})
    with heard() as lines:
        distil(run)
    (said,) = [line for line in lines if "loss scale" in line]
    assert "Update 2: the student's gradient" in said and "halved to 2048" in said
    found = metrics_of(run)
    assert [line.get("left_out_steps") for line in found] == [None, 1, 1, None]
    assert ["student_grad_norm" in line for line in found] == [True, False, False, True]
    assert "fake_grad_norm" in found[1]  # its own gradient was sound
    assert saved_scale(run) == {"factor": 1024.0, "steps": 1, "in_a_row": 0, "left_out": 2}
    assert saved_scale(run, "fake") == {"factor": 4096.0, "steps": 4, "in_a_row": 0, "left_out": 0}
    assert all(bool(torch.isfinite(value).all()) for value in final_state(run).values())


def test_a_resume_goes_on_bit_for_bit(files, tmp_path, monkeypatch):
    straight = new_run(tmp_path / "a", files["sd1"], **HALF, save_every=1)
    poison(monkeypatch, {2})
    distil(straight)
    monkeypatch.undo()
    stopped = new_run(tmp_path / "b", files["sd1"], **HALF, save_every=1)
    poison(monkeypatch, {2})

    def stop_at_two(progress):
        if progress.step == 2:
            request_stop(stopped)

    distil(stopped, stop_at_two)
    assert saved_scale(stopped)["in_a_row"] == 1
    monkeypatch.undo()
    distil(stopped)
    ours, theirs = final_state(stopped), final_state(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert saved_scale(stopped) == saved_scale(straight)
    assert metrics_of(stopped) == metrics_of(straight)


def test_many_overflows_in_a_row_end_the_run_with_one_error(files, tmp_path, monkeypatch):
    assert MOST_IN_A_ROW == 10
    monkeypatch.setattr(loss_scale, "MOST_IN_A_ROW", 3)
    run = new_run(tmp_path, files["sd1"], **HALF, steps=20, save_every=50)
    poison(monkeypatch, set(range(2, 100)))
    with heard() as lines, pytest.raises(NonFiniteError) as caught:
        distil(run)
    text = str(caught.value)
    assert "Update 4: the student's gradient" in text and "3 times in a row" in text
    assert "--dtype bfloat16" in text
    assert len([line for line in lines if "loss scale" in line]) == 1
    assert len(run.metrics()) == 3
    assert run.read_json("progress.json")["status"] == "failed"


def test_a_factor_that_is_too_high_finds_its_way(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], **HALF)
    session = open_session(run)
    scales = session.trainer.network.scales
    scales["fake"].factor = 2.0**21  # its gradients overflow for sure
    for _ in range(10):
        session.trainer.update()
    assert 0 < scales["fake"].left_out < 10 and scales["fake"].factor < 2.0**21
    assert scales["student"].left_out == 0


def test_a_run_of_an_earlier_version_goes_on(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], **HALF)
    distil(run, lambda progress: request_stop(run) if progress.step == 2 else None)
    path = run.latest_state() / "state.json"
    facts = json.loads(path.read_text())
    assert facts["loss_scales"].keys() == {"student", "fake"}
    for damaged in ({"student": facts["loss_scales"]["student"]}, [], {"student": 1, "fake": 2}):
        path.write_text(json.dumps(facts | {"loss_scales": damaged}))
        with pytest.raises(RunError, match="is damaged"):
            distil(run)
    del facts["loss_scales"]
    path.write_text(json.dumps(facts))
    assert distil(run).finished
    assert saved_scale(run)["factor"] == HIGHEST and saved_scale(run)["steps"] == 2


def test_other_formats_save_no_factor(files, tmp_path):
    run = new_run(tmp_path, files["sd1"], steps=1)
    distil(run)
    assert "loss_scales" not in json.loads((run.latest_state() / "state.json").read_text())
