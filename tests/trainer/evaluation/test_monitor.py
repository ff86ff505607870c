"""Measurements during a run, the best student kept by them, and the report at the end."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.prompts.expansion import hold_out
from dpdmd_studio.app.runs.directory import EVALUATIONS, RunDirectory
from dpdmd_studio.core.lora.file import read_lora
from dpdmd_studio.trainer.commands import distill as runner
from dpdmd_studio.trainer.evaluation import features, perception
from dpdmd_studio.trainer.evaluation import monitor as monitor_module
from dpdmd_studio.trainer.evaluation.monitor import clearly_nearer
from safetensors.torch import load_file
from tiny_runs import TINY, distil, final_state, heard, request_stop

pytestmark = pytest.mark.usefixtures("home")

PROMPTS = [f"a thing number {number}" for number in range(12)]


@pytest.fixture(autouse=True)
def few_seeds(monkeypatch):
    """And measured in the layout alone, which is quicker, where a test does not say otherwise."""
    monkeypatch.setattr(monitor_module, "EVALUATION_SEEDS", (2_000_001, 2_000_002, 2_000_003))
    monkeypatch.setattr(perception, "perceptual_features", lambda: None)


def measured_run(folder, checkpoint, prompts=PROMPTS, **settings) -> RunDirectory:
    measured = {"evaluate_every": 1, "evaluation_prompts": 2, "teacher_steps": 4, "keep": "best"}
    config = TINY | measured | settings
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(checkpoint)),
        config=DistillConfig.from_dict(config),
        output=str(folder / "student.safetensors"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return runner.create_run(folder / "run", request, prompts, overwrite=False)


def distances(run: RunDirectory) -> dict[int, float]:
    return {line["step"]: line["teacher_distance"] for line in run.metrics(EVALUATIONS)}


def test_prompts_set_aside_are_not_trained_on_and_at_most_a_fifth():
    training, measured = hold_out(PROMPTS, 6, seed=3)
    assert len(measured) == 2 and sorted(training + measured) == sorted(PROMPTS)
    assert hold_out(PROMPTS, 6, seed=3) == (training, measured)
    assert hold_out(PROMPTS, 0, seed=3) == (PROMPTS, [])
    assert hold_out(PROMPTS[:9], 6, seed=3) == (PROMPTS[:9], [])


def test_alternatives_of_a_prompt_set_aside_are_chosen_once():
    prompts = [f"a {{red|blue}} thing {number}" for number in range(10)]
    _, measured = hold_out(prompts, 2, seed=0)
    assert len(measured) == 2 and all("{" not in text for text in measured)


def test_a_prompt_that_training_expands_to_is_not_measured_on(files, tmp_path):
    run = measured_run(tmp_path, files["sd3"], prompts=["{a|a} cat"] * 9 + ["a cat"])
    assert run.evaluation_prompts() == ["a cat"]
    assert distil(run).report is None and run.metrics(EVALUATIONS) == []


def test_a_run_is_measured_as_asked_and_ends_in_a_report(files, tmp_path, monkeypatch):
    monkeypatch.setattr(perception, "perceptual_features", features.perceptual_features)
    run = measured_run(tmp_path, files["sd1"], evaluate_every=3)
    outcome = distil(run)
    assert list(distances(run)) == [3, 4]  # every third update, and the last
    assert outcome.report == run.report / "report.html" and outcome.report.is_file()
    numbers = json.loads((run.report / "report.json").read_text(encoding="utf-8"))
    assert numbers["prompts"] == run.evaluation_prompts()
    assert not set(numbers["prompts"]) & set(run.prompts())
    names = [arm["name"] for arm in numbers["arms"]]
    assert names[1:] == [
        "Teacher without guidance, 4 steps",
        "Student, off at step 1",
        "DP-DMD student, 4 steps",
    ]
    assert numbers["arms"][0]["measures"]["teacher_distance"] <= 0
    last = run.metrics(EVALUATIONS)[-1]
    student = numbers["arms"][-1]["measures"]
    assert outcome.kept_step == 4
    assert student["teacher_distance"] == pytest.approx(last["teacher_distance"])
    assert student["sample_diversity"] == pytest.approx(last["sample_diversity"])
    assert any("diversity_kept" in line for line in numbers["metrics"])
    assert {"perceptual_distance", "brightness", "saturation"} <= last.keys()
    assert any("perceptual_distance" in line for line in numbers["metrics"])


def test_measuring_changes_nothing_that_is_computed(files, tmp_path):
    states = []
    for every in (0, 1):
        run = measured_run(tmp_path / str(every), files["sd3"], evaluate_every=every)
        distil(run)
        states.append(final_state(run))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_resumed_run_has_the_measurements_of_an_undisturbed_one(files, tmp_path):
    whole = measured_run(tmp_path / "whole", files["sd3"])
    distil(whole)
    parts = measured_run(tmp_path / "parts", files["sd3"])

    def stop_after_first(progress):
        if progress.step == 1:
            request_stop(parts)

    assert not distil(parts, stop_after_first).finished
    assert list(distances(parts)) == []  # a stop comes before a measurement
    distil(parts)
    assert distances(parts) == distances(whole)


def same_tensors(one, other) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def fixed_distances(monkeypatch, by_step: dict[int, float]) -> None:
    """Measurements that say what the test wants them to."""
    numbers = monitor_module._numbers

    def told(step, found, teacher):
        spread = [by_step[step], by_step[step] + 0.001]
        line = numbers(step, found, teacher)
        return line | {"distances": spread, "teacher_distance": sum(spread) / 2}

    monkeypatch.setattr(monitor_module, "_numbers", told)


def test_a_clearly_better_earlier_student_is_written(files, tmp_path, monkeypatch):
    fixed_distances(monkeypatch, {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.4})
    run = measured_run(tmp_path, files["sd3"], save_every=1)
    outcome = distil(run)
    assert (outcome.step, outcome.kept_step) == (4, 2)
    written, second = (
        load_file(outcome.lora),
        load_file(run.checkpoints / "step-00000002.safetensors"),
    )
    assert all(torch.equal(value, second[name]) for name, value in written.items())
    assert read_lora(outcome.lora).metadata["ss_steps"] == "2"
    assert run.read_json("result.json")["kept_step"] == 2


class Seen:
    """What the images' perception says of one update after the other, for two prompts."""

    told: ClassVar[list[float]] = []

    def __init__(self, teacher) -> None:
        assert teacher

    def __call__(self, rows):
        if not self.told:
            return {}  # as without the network
        here = self.told.pop(0)
        spread = [here, here + 0.001]
        return {"perceptual_distance": sum(spread) / 2, "perceptual_distances": spread}


def test_what_people_see_decides_where_it_is_known(files, tmp_path, monkeypatch):
    fixed_distances(monkeypatch, {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.4})
    monkeypatch.setattr(monitor_module, "Perception", Seen)
    monkeypatch.setattr(Seen, "told", [0.3, 0.2, 0.1, 0.4])
    assert distil(measured_run(tmp_path, files["sd3"])).kept_step == 3


def test_a_student_kept_for_another_reason_is_not_written(files, tmp_path, monkeypatch, caplog):
    """The network was there for the first half, so the best of the layout was not kept."""
    fixed_distances(monkeypatch, {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.4})
    monkeypatch.setattr(monitor_module, "Perception", Seen)
    monkeypatch.setattr(Seen, "told", [0.3, 0.1])
    run = measured_run(tmp_path, files["sd3"])

    def stop_after_third(progress):
        if progress.step == 3:
            request_stop(run)

    distil(run, stop_after_third)
    outcome = distil(run)
    assert outcome.finished and outcome.kept_step == 4
    assert "is not the student after update 1" in caplog.text


@pytest.mark.parametrize(
    ("by_step", "settings"),
    [
        ({1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1}, {}),
        ({1: 0.5, 2: 0.1, 3: 0.3, 4: 0.4}, {"keep": "last"}),
    ],
)
def test_else_the_last_student_is_written(files, tmp_path, monkeypatch, by_step, settings):
    fixed_distances(monkeypatch, by_step)
    run = measured_run(tmp_path, files["sd3"], **settings)
    outcome = distil(run)
    assert outcome.kept_step == 4
    written, last = (
        load_file(outcome.lora),
        load_file(run.checkpoints / "step-00000004.safetensors"),
    )
    assert all(torch.equal(value, last[name]) for name, value in written.items())


def test_chance_does_not_make_an_earlier_student_better():
    assert clearly_nearer([0.1, 0.2, 0.3], [0.2, 0.31, 0.4])
    assert not clearly_nearer([0.1, 0.2, 0.3], [0.3, 0.1, 0.35])
    assert not clearly_nearer([0.1], [0.2])  # one prompt says nothing of chance


def test_too_few_prompts_are_said(files, tmp_path):
    run = measured_run(tmp_path, files["sd3"], prompts=PROMPTS[:4])
    with heard() as said:
        outcome = distil(run)
    assert any("Too few prompts" in text and "`compare`" in text for text in said)
    assert outcome.report is None and not run.evaluation.exists()


def test_a_device_too_small_to_draw_costs_the_measurements_not_the_run(
    files, tmp_path, monkeypatch
):
    def too_small(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(monitor_module, "draw_timed", too_small)
    run = measured_run(tmp_path, files["sd3"])
    with heard() as said:
        outcome = distil(run)
    assert outcome.finished and outcome.lora.is_file() and outcome.report is None
    assert sum("too little memory" in text for text in said) == 2  # measurements, report


def test_a_stop_while_the_report_is_made_keeps_the_lora(files, tmp_path, monkeypatch):
    run = measured_run(tmp_path, files["sd3"])

    def stopping(text: str) -> None:
        if "Drawing: Teacher without" in text:
            request_stop(run)

    with heard(stopping) as said:
        outcome = distil(run)
    assert outcome.finished and outcome.lora.is_file() and outcome.report is None
    assert any("Stopped before the report" in text for text in said)
    assert run.read_json("progress.json")["status"] == "finished"
    assert distil(run).report is not None  # asked again, it is made
