"""A data folder of version 0.1.0 opens, shows and goes on, to the bit: see golden_data.py."""

from __future__ import annotations

import json
from pathlib import Path

import dpdmd_studio
import golden_data
import golden_runs
import numpy as np
import pytest
from golden_runs import done, run
from PIL import Image


@pytest.fixture(scope="module")
def facts():
    return golden_data.expected("facts.json")


@pytest.fixture
def home(tmp_path) -> Path:
    return golden_data.opened(tmp_path)


def same(found, facts, *names: str) -> None:
    golden = facts
    for name in names:
        golden = golden[name]
    found = json.loads(json.dumps(found))
    golden_runs.assert_same(found, golden, facts["made_by"], where=" ".join(names))


def test_the_runs_are_listed_and_shown_as_they_were(home, facts):
    found = golden_data.seen(home)
    states = {title: job["state"] for title, job in found["listed"].items()}
    assert states == {title: title for title in golden_data.RUNS}
    reports = {title: job.pop("report") for title, job in found["details"].items()}  # came later
    assert [title for title, there in reports.items() if there] == ["finished"]
    same(found, facts, "seen")


def test_the_interrupted_run_goes_on_as_if_nothing_had_been(home, facts):
    folder = home / "runs" / golden_data.ids(home)["interrupted"]
    assert len(golden_runs.lines(folder / "metrics.jsonl")) == 3  # one more than is saved
    said = run("resume", folder, "--json", home=home)
    assert said.code == 0 and "Resuming after update 2" in said.err, said.err
    found = json.loads(said.out)
    assert found["finished"] and found["step"] == 5
    same(golden_runs.lines(folder / "metrics.jsonl"), facts, "metrics", "interrupted")
    golden = golden_data.BESIDE / "interrupted.safetensors"
    golden_runs.assert_same_tensors(Path(found["lora"]), golden, facts["made_by"])


def test_the_queued_run_is_done_by_the_worker(home, facts, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run("work", home=home).code == 0
    folder = home / "runs" / golden_data.ids(home)["queued"]
    job = golden_data.seen(home)["listed"]["queued"]
    assert job["state"] == "finished", (folder / "log.txt").read_text(encoding="utf-8")
    same(golden_runs.lines(folder / "metrics.jsonl"), facts, "metrics", "queued")
    golden = golden_data.BESIDE / "queued.safetensors"
    golden_runs.assert_same_tensors(home / "loras" / golden.name, golden, facts["made_by"])


def test_the_stopped_run_can_be_queued_again(home, facts):
    with golden_data.no_worker():
        again = done("runs", "start", golden_data.ids(home)["stopped"], home=home)
    assert again["state"] == "queued" and again["place"] == 1
    assert again["step"] == facts["seen"]["listed"]["stopped"]["step"] >= 3


def test_the_deleted_run_comes_back(home):
    (trashed,) = (path.name for path in (home / "trash").iterdir())
    with golden_data.no_worker():
        assert done("runs", "restore", trashed, home=home)["title"] == "from the page"


def test_the_settings_can_be_used(home, tmp_path, facts):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a large red circle\n", encoding="utf-8")
    run_folder = tmp_path / "again"
    words = ["distill", golden_data.CHECKPOINT, "--prompts", prompts, "--run", run_folder]
    words += ["--settings", home / "shared.json", "--steps", 1, "--preview-every", 0]
    done(*words, "--output", tmp_path / "again.safetensors", home=home)
    used = json.loads((run_folder / "settings.json").read_text(encoding="utf-8"))["config"]
    golden = facts["settings"] | {"steps": 1, "preview_every": 0}
    assert {name: used[name] for name in golden if name in used} == golden


def test_what_a_run_and_a_lora_carry_are_the_settings_of_the_file(home, facts):
    run_folder = home / "runs" / golden_data.ids(home)["finished"]
    for source in (run_folder, home / "loras" / "finished.safetensors"):
        said = run("settings", "export", source, home=home)
        assert said.code == 0 and json.loads(said.out)["config"] == facts["settings"]


def test_the_preferences_are_remembered(home, facts):
    same(golden_data.remembered(home), facts, "remembered")


def test_the_lora_says_the_same_of_itself(home, facts):
    same(golden_data.inspected(home), facts, "inspect")


def test_the_lora_draws_the_same_pictures(home, tmp_path, facts):
    found = golden_data.sampled(home, tmp_path / "drawn")
    assert len(found) == 2
    exact = facts["made_by"] == golden_runs.fingerprint()
    for path in found:
        pair = [_pixels(place) for place in (path, golden_data.BESIDE / path.name)]
        largest = int(np.abs(pair[0] - pair[1]).max())
        assert largest <= (0 if exact else golden_runs.PIXELS), path.name


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


WORKFLOWS = sorted(path.name for path in (golden_data.DATA / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_saved_workflow_still_fits_the_nodes(name, home, facts):
    workflow = json.loads((home / "workflows" / name).read_text(encoding="utf-8"))
    for kind, golden in facts["controls"][name].items():
        node = dpdmd_studio.NODE_CLASS_MAPPINGS[kind]  # the id still exists
        shown = golden_data.widgets(node)
        # a canvas fills in saved values by their place: controls may be added at the end alone
        assert [control for control, _ in shown][: len(golden)] == golden, kind
    for saved in workflow["nodes"]:
        if saved["type"].startswith("DPDMD"):
            _check_saved(saved, dpdmd_studio.NODE_CLASS_MAPPINGS[saved["type"]])


def _check_saved(saved: dict, kind) -> None:
    groups = kind.INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    assert {slot["name"] for slot in saved["inputs"]} <= set(inputs)
    names = list(getattr(kind, "RETURN_NAMES", kind.RETURN_TYPES))
    assert [slot["type"] for slot in saved["outputs"]] == list(kind.RETURN_TYPES)
    assert [slot["name"] for slot in saved["outputs"]] == names
    for value, (name, spec) in zip(
        saved["widgets_values"], golden_data.widgets(kind), strict=False
    ):
        if isinstance(spec[0], list) and name not in FILES:
            assert value in spec[0] or name == "control_after_generate", name
        elif spec[0] in ("INT", "FLOAT"):
            assert spec[1]["min"] <= value <= spec[1]["max"], name


FILES = ("checkpoint", "lora_name", "prompts_file", "teacher_lora", "clip_l", "clip_g", "t5", "vae")
"""Controls whose choices are the host's files."""


def test_the_goldens_stay_small():
    files = [path for path in golden_runs.FOLDER.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 1 << 20
    assert sum(path.stat().st_size for path in files) < 5 << 20
