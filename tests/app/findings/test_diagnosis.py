"""Diagnosis in plain words: real curves are named for what they are, healthy ones left alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.findings.diagnosis import diagnose, diagnose_facts
from dpdmd_studio.app.findings.outcome import variants
from dpdmd_studio.app.runs import facts as run_facts
from dpdmd_studio.app.runs.directory import EVALUATIONS, RunDirectory
from dpdmd_studio.app.runs.facts import RunFacts, read_facts, window_medians

GOLDEN = Path(__file__).parents[2] / "goldens" / "diagnosis-curves.json"
RUNNING = {"status": "running"}
LAG, RATE = "The fake score lags behind the student", "Learning rate too high"
COLLAPSE, LOW = "Diversity is collapsing", "Diversity is low"
SPILL, SLOWER = "Memory spills to system RAM", "Updates have become slower"


def real(name: str, updates: int) -> RunFacts:
    """A run of the embedded teacher as it was after so many updates."""
    run = json.loads(GOLDEN.read_text())["runs"][name]
    columns = run["metrics"]
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    metrics = [{"step": step} | line for step, line in enumerate(lines[:updates], 1)]
    return RunFacts(
        config=DistillConfig.from_dict(
            {"batch_size": 8, "steps": 120, "fake_updates": 5, **run["config"]}
        ),
        metrics=metrics,
        evaluations=[line for line in run["evaluations"] if line["step"] <= updates],
        progress=RUNNING,
    )


def facts(values: Mapping[str, Sequence[Any]] | None = None, **more: Any) -> RunFacts:
    """A run whose metrics are these columns, with settings and other facts as named."""
    columns = values or {}
    count = max((len(column) for column in columns.values()), default=0)
    lines = [
        {"step": i + 1} | {k: column[i] for k, column in columns.items()} for i in range(count)
    ]
    settings = {"batch_size": 16} | more.pop("settings", {})
    given = {"progress": RUNNING, "platform": "linux"} | more
    return RunFacts(config=DistillConfig.from_dict(settings), metrics=lines, **given)


def measured(kept: Sequence[float], away: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"step": 10 * (i + 1), "diversity_kept": k, "teacher_distance": a,
         "distances": [a, a * 1.1, a * 0.9]}
        for i, (k, a) in enumerate(zip(kept, away, strict=True))
    ]  # fmt: skip


def titles(found: RunFacts, level: str = "") -> list[str]:
    return [f.title for f in diagnose_facts(found) if level in ("", f.level)]


# Real runs


def test_a_healthy_run_raises_no_alarm_at_any_update():
    for updates in range(1, 101):
        found = [f for f in diagnose_facts(real("healthy", updates)) if f.level != "info"]
        assert found == [], (updates, found)


def test_a_learning_rate_100_times_too_high_is_named_while_the_run_goes():
    for updates in (30, 45, 60):
        first = diagnose_facts(real("lr100", updates))[0]
        assert (first.level, first.title) == ("problem", RATE)
        assert "0.01 in place of 0.1" in first.text
    assert "Images vary more than the teacher's" in titles(real("lr100", 60), "problem")
    assert LAG not in titles(real("lr100", 60))  # the cause is named, not what follows from it


def test_a_fake_score_that_hardly_learns_is_named_though_its_cosine_is_fine():
    found = diagnose_facts(real("fakelag", 100))
    assert found[0].title == LAG and found[0].level == "problem"
    assert "10 in place of 5" in found[0].text and "1e-06" in found[0].text
    assert min(real("fakelag", 100).values("score_cosine")) > 0.9


# Learning rate, fake score, gradients


def test_an_anchor_error_that_rises_by_half_is_a_warning_and_doubled_a_problem():
    falling = [0.4] * 10 + [0.2] * 10
    assert titles(facts({"anchor_error": falling + [0.28] * 10})) == []
    assert titles(facts({"anchor_error": falling + [0.32] * 10}), "warning") == [RATE]
    assert titles(facts({"anchor_error": falling + [0.45] * 10}), "problem") == [RATE]


def test_a_fake_score_that_loses_its_way_is_named_until_it_comes_back():
    falling = [0.98] * 30 + [0.93] * 15 + [0.85] * 15
    assert titles(facts({"score_cosine": falling}), "warning") == [LAG]
    assert titles(facts({"score_cosine": falling + [0.97] * 20}), "warning") == []
    assert titles(facts({"score_cosine": [0.98] * 30 + [0.3] * 20}), "problem") == [LAG]


def test_few_pictures_say_nothing_of_losses_at_random_levels():
    noisy = [0.1] * 10 + [0.1, 0.9, 0.9, 0.9, 0.9] * 2
    assert titles(facts({"fake_loss": noisy}, settings={"batch_size": 1}), "problem") == []
    assert titles(facts({"fake_loss": noisy}), "problem") == [LAG]


@pytest.mark.parametrize("name", ["student", "fake"])
def test_a_gradient_far_above_its_level_explodes_and_a_spike_does_not(name):
    key, even = f"{name}_grad_norm", [0.02, 0.03] * 25
    label = {"student": "student", "fake": "fake score"}[name]
    found = diagnose_facts(facts({key: even + [0.4] * 12}))
    assert found[0].title == f"The gradient of the {label} explodes"
    assert "16 times its level before" in found[0].text and "3e-05" in found[0].text
    assert titles(facts({key: [*even, 9.0, *even]}), "problem") == []
    early = [0.001] * 10 + [0.05] * 50  # LoRAs begin at zero: the first gradients are small
    assert titles(facts({key: early}), "problem") == []


def test_clipping_at_every_update_is_said_and_far_above_the_limit_it_is_a_warning():
    title = "The gradient of the student is clipped at nearly every update"
    assert title in titles(facts({"student_grad_norm": [2.0] * 60}), "info")
    assert titles(facts({"student_grad_norm": [20.0] * 60}), "warning") == [title]
    assert title not in titles(facts({"student_grad_norm": [2.0, 0.5] * 30}))
    assert title not in titles(facts({"student_grad_norm": [2.0] * 49}))


def test_gradients_of_exactly_zero_learn_nothing():
    found = titles(facts({"student_grad_norm": [0.1] * 9 + [0.0] * 10}), "problem")
    assert found == ["The student learns nothing"]
    assert titles(facts({"student_grad_norm": [0.0] * 9 + [1e-9]}), "problem") == []


def test_steps_left_out_in_float16_are_named_where_they_are_many():
    title = "Float16 overflows often"
    assert titles(facts({"left_out_steps": [0] * 45 + [1, 0, 2, 0, 1]})) == []
    assert titles(facts({"left_out_steps": [0] * 40 + [1, 0] * 5}), "warning") == [title]
    assert titles(facts({"left_out_steps": [1] * 49})) == []


# Speed and memory

SLOW = [9.0, *[1.0] * 39, *[5.0] * 20]


def full(share: float) -> dict[str, list[float]]:
    count = len(SLOW)
    return {"seconds": SLOW, "memory_bytes": [share * 8e9] * count,
            "device_memory_bytes": [8e9] * count}  # fmt: skip


def test_memory_that_spills_on_windows_is_named_with_the_drivers_setting():
    (found, *_) = diagnose_facts(facts(full(0.95), platform="win32"))
    assert (found.level, found.title) == ("problem", SPILL)
    assert "CUDA - Sysmem Fallback Policy" in found.text and "took 1 s" in found.text


def test_slower_updates_are_no_spill_where_memory_is_free_or_it_is_not_windows():
    assert titles(facts(full(0.5), platform="win32"), "warning") == [SLOWER]
    assert titles(facts(full(0.95)), "warning") == [SLOWER]
    (found, *_) = diagnose_facts(facts({"seconds": SLOW}, platform="win32"))
    assert found.title == SLOWER and "may have spilled" in found.text


def test_a_pause_or_a_recovered_speed_is_no_slowdown():
    assert titles(facts({"seconds": [1.0] * 50 + [300.0] * 3 + [1.0] * 7}), "warning") == []
    assert titles(facts({"seconds": SLOW + [1.0] * 20}), "warning") == []
    assert titles(facts({"seconds": [1.0] * 40 + [2.0] * 20}), "warning") == []


def test_several_resolutions_do_not_pass_for_a_slowdown():
    mixed = [0.25, 1.0, 1.0, 0.25, 0.25, 0.25] * 20 + [1.0] * 12 + [0.25, 1.0] * 14
    settings = {"resolution": "512x512,1024x1024"}
    assert titles(facts({"seconds": mixed}, settings=settings), "warning") == []


# Measurements


@pytest.mark.parametrize(
    ("kept", "away", "expected"),
    [
        ([0.9, 0.95, 0.7], [0.02, 0.01, 0.03], [(COLLAPSE, "problem")]),
        ([0.9, 0.85, 0.82], [0.02, 0.01, 0.03], []),
        ([0.5, 0.6, 0.7], [0.05, 0.04, 0.03], []),  # rising
        ([0.7, 0.72, 0.73], [0.03, 0.03, 0.03], [(LOW, "warning")]),
        ([0.5, 0.45, 0.45], [0.03, 0.03, 0.03], [(LOW, "problem")]),
        ([0.95, 0.75], [0.02, 0.01], []),  # once, and nearer to the teacher than before
        ([0.4], [0.02], []),
    ],
)
def test_diversity_that_collapses_is_told_from_noise_and_from_a_beginning(kept, away, expected):
    found = diagnose_facts(facts(evaluations=measured(kept, away)))
    assert [(f.title, f.level) for f in found if f.level != "info"] == expected


def test_the_advice_on_diversity_names_settings_and_the_nearest_student():
    lines = measured([0.9, 0.95, 0.7], [0.02, 0.01, 0.03])
    first = diagnose_facts(facts(evaluations=lines))[0]
    assert "vary 70% as much" in first.text and "95% at best" in first.text
    assert "0.4 in place of 0.2" in first.text and "that of update 20" in first.text
    plain = diagnose_facts(facts(evaluations=lines, settings={"objective": "dmd"}))[0]
    assert "use dp_dmd" in plain.text


def test_the_best_student_is_named_and_chance_is_called_chance():
    lines = measured([0.9] * 3, [0.02, 0.01, 0.03])
    clear = diagnose_facts(facts(evaluations=lines, settings={"keep": "best"}))
    assert [f.title for f in clear] == ["The best student so far is that of update 20"]
    assert "the earlier one is written" in clear[0].text
    assert "keeps the last one; set keep" in diagnose_facts(facts(evaluations=lines))[0].text
    lines = measured([0.9] * 2, [0.02, 0.0201])
    lines[1]["distances"] = [0.03, 0.01, 0.0203]
    assert "Chance may explain" in diagnose_facts(facts(evaluations=lines))[0].text
    assert titles(facts(evaluations=measured([0.9] * 2, [0.02, 0.01]))) == []


def test_what_people_see_names_the_best_student_where_every_line_knows_it():
    lines = measured([0.9] * 3, [0.02, 0.01, 0.03])
    for line, away in zip(lines, (0.1, 0.3, 0.2), strict=True):
        line |= {"perceptual_distance": away, "perceptual_distances": [away, away, away * 1.1]}
    (best,) = diagnose_facts(facts(evaluations=lines))
    assert "that of update 10" in best.title and "is 0.1, that of update 30 is 0.2" in best.text
    del lines[0]["perceptual_distances"]
    assert "that of update 20" in diagnose_facts(facts(evaluations=lines))[0].title


DRIFT = "Colours drift from the teacher's"


@pytest.mark.parametrize(
    ("brightness", "saturation", "words"),
    [
        ([1.15, 1.12, 1.14], [1.0, 1.02, 0.98], "14% brighter than"),
        ([0.85, 0.9, 0.86], [0.7, 0.75, 0.72], "13% darker and 28% less saturated than"),
        ([1.0, 0.99, 1.01], [1.3, 1.26, 1.31], "29% more saturated than"),
        ([1.08, 1.07, 1.08], [1.18, 1.17, 1.16], ""),  # too little
        ([0.8, 1.6, 1.1], [1.0, 1.9, 1.1], ""),  # prompts disagree
        ([1.2], [1.0], ""),  # one prompt says nothing of chance
        ([], [], ""),
    ],
)
def test_colours_that_drift_are_told_in_words(brightness, saturation, words):
    lines = measured([0.9] * 2, [0.02, 0.01])
    lines = [line | {"brightness": brightness, "saturation": saturation} for line in lines]
    found = [f for f in diagnose_facts(facts(evaluations=lines)) if f.title == DRIFT]
    assert len(found) == bool(words)
    if found:
        assert found[0].level == "warning" and words in found[0].text
        assert "3e-05 in place of 0.0001" in found[0].text
    once = [lines[0] | {"brightness": [1.0] * 3, "saturation": [1.0] * 3}, lines[1]]
    assert DRIFT not in titles(facts(evaluations=once))


def test_a_finished_run_says_which_student_was_written():
    found = diagnose_facts(facts(result={"step": 300, "kept_step": 200}))
    assert [f.title for f in found] == ["The best student is that of update 200"]
    assert titles(facts(result={"step": 300, "kept_step": 300})) == []


def test_a_run_that_nobody_measures_says_so_once_that_is_certain():
    title, lines = "This run is not measured", {"anchor_error": [0.3] * 40}
    settings = {"evaluate_every": 30}
    assert titles(facts(lines, settings=settings)) == []  # perhaps it is drawing just now
    stopped = facts(lines, settings=settings, progress={"status": "finished"})
    assert titles(stopped) == [title]
    assert titles(facts(lines, settings={"evaluate_every": 0})) == [title]
    assert titles(replace(stopped, evaluations=measured([0.9], [0.01]))) == []


# Prompts and endings


@pytest.mark.parametrize(
    ("prompts", "steps", "expected"),
    [
        (["a cat"] * 1, 1000, True),
        ([f"cat {n}" for n in range(150)], 1000, True),
        ([f"cat {n}" for n in range(150)], 900, False),  # each about 96 times
        ([f"cat {n}" for n in range(200)], 100_000, False),
        (["a cat"], 31, False),  # of 16 images each
        ([f"a {{red|blue|green}} cat {n}" for n in range(70)], 1000, False),
        (["a __colour__ cat"], 1000, False),
    ],
)
def test_too_few_prompts_for_a_long_run(prompts, steps, expected):
    found = facts(prompts=prompts, settings={"steps": steps})
    assert ("Too few prompts" in titles(found, "warning")) is expected


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("a cat", 1), ("{a|b} {c|d|e}", 6), ("{a|{b|c}|d}", 6), ("{a", 1), ("{a|b}" * 30, 200),
     ("__x__", 200), ("snake__case", 1)],
)  # fmt: skip
def test_alternatives_are_counted_roughly(prompt, count):
    assert variants(prompt) == count


def test_how_a_run_ended_is_said():
    lines = {"anchor_error": [0.3] * 40}
    stopped = facts(lines, progress={"status": "stopped"}, settings={"steps": 100})
    assert titles(stopped)[0] == "Stopped after 40 of 100 updates"
    assert "Stopped" not in " ".join(titles(replace(stopped, progress={"status": "finished"})))
    failed = replace(stopped, progress={"status": "failed", "error": "the disk is full"})
    first = diagnose_facts(failed)[0]
    assert (first.level, first.title, first.text) == (
        "problem",
        "The run failed",
        "the disk is full",
    )


def test_the_worst_comes_first():
    found = diagnose_facts(
        replace(real("lr100", 60), prompts=["a"], progress={"status": "stopped"})
    )
    order = [("problem", "warning", "info").index(f.level) for f in found]
    assert order == sorted(order) and len(set(order)) > 1


# Files


def run_of(folder: Path, **settings: Any) -> RunDirectory:
    request = DistillRequest(
        model=ModelFiles(checkpoint="/c.safetensors"),
        config=DistillConfig.from_dict({"steps": 500, "batch_size": 16} | settings),
        output="/o.safetensors",
    )
    return RunDirectory.create(folder, request.to_dict(), ["a cat", "a dog"])


def test_a_run_on_disk_is_diagnosed_from_its_files(tmp_path):
    run = run_of(tmp_path / "run", student_lr=0.1)
    for step in range(1, 31):
        run.append_metrics({"step": step, "anchor_error": 0.3 if step <= 20 else 1.5})
    for line in measured([0.9, 0.95], [0.01, 0.02]):
        run.append_metrics(line, EVALUATIONS)
    run.write_json("progress.json", RUNNING)
    found = diagnose(run)
    assert [f.title for f in found] == [
        RATE, "Too few prompts", "The best student so far is that of update 10",
    ]  # fmt: skip
    assert "0.01 in place of 0.1" in found[0].text and "2 different prompts" in found[1].text


HOSTILE = [
    b"",
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b"5\n[]\n{}\nnull\n",
    b'{"step": "x"}\n{"step": NaN}\n{"step": true, "seconds": 1}\n{"step": 1e400}\n',
    b'{"step": 1, "anchor_error": NaN, "seconds": -Infinity, "fake_loss": "1", "student_grad_norm":'
    b' [1], "score_cosine": null, "diversity_kept": {}, "distances": 3}\n' * 3,
    b'{"step": 2, "seconds": ' + b"9" * 400 + b"}\n",
    b'{"step": 3, "distances": ["a"], "diversity_kept": 0.1, "teacher_distance": 0}\n{"step": 4, '
    b'"diversity_kept": 0.1, "teacher_distance": 0, "distances": [1, 2]}\n{"step": 5, "half',
    b'{"step": 1, "diversity_kept": 0.9, "teacher_distance": 1, "perceptual_distance": 1,'
    b' "perceptual_distances": "ab", "brightness": [null, 2], "saturation": 3}\n{"step": 2,'
    b' "diversity_kept": 0.9, "teacher_distance": 1, "perceptual_distance": 1, "brightness": {}}\n',
]


@pytest.mark.parametrize("content", HOSTILE)
def test_odd_content_never_raises(tmp_path, content):
    for names in (("metrics.jsonl",), (EVALUATIONS,), ("settings.json",), ("progress.json",),
                  ("result.json",), ("prompts.txt",)):  # fmt: skip
        folder = tmp_path / names[0]
        run = run_of(folder)
        (folder / names[0]).write_bytes(content)
        assert isinstance(diagnose(run), list)
    assert diagnose(RunDirectory(tmp_path / "absent")) == []


def test_odd_values_in_sound_tables_never_raise(tmp_path):
    run = run_of(tmp_path / "run")
    run.append_metrics({"step": 1})
    odd: tuple[Any, ...] = ([], {}, "x", -1, 10**400, None, True)
    for value in odd:
        run.write_json("progress.json", {"status": value, "error": value})
        run.write_json("result.json", {"step": value, "kept_step": value})
        run.write_json("settings.json", {"config": {"steps": value}})
        assert isinstance(diagnose(run), list)


def test_lines_are_put_in_order_and_a_step_that_was_done_again_counts_once(tmp_path):
    run = run_of(tmp_path / "run")
    for step, value in ((3, 3.0), (1, 1.0), (2, 9.0), (2, 2.0)):
        run.append_metrics({"step": step, "seconds": value})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "sec')
    assert read_facts(run).values("seconds") == [1.0, 2.0, 3.0]


def test_of_a_very_long_run_the_beginning_and_the_end_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(run_facts, "HEAD_BYTES", 300)
    monkeypatch.setattr(run_facts, "TAIL_BYTES", 500)
    run = run_of(tmp_path / "run")
    for step in range(1, 201):
        run.append_metrics({"step": step, "seconds": 1.5})
    steps = [line["step"] for line in read_facts(run).metrics]
    assert steps[0] == 1 and steps[-1] == 200 and 10 < len(steps) < 40
    assert len(set(steps)) == len(steps)


def test_the_last_stretch_of_medians_ends_with_the_last_value():
    assert window_medians([9, 1, 2, 3, 4, 5, 6], 3) == [2, 5]
    assert window_medians([1, 2], 3) == []
