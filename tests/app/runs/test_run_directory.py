"""Run directories: atomic files, metrics after a crash, states, stop requests, ownership."""

import json
import os
import subprocess
import sys

import pytest
from dpdmd_studio.app.runs.directory import KEPT_STATES, RunDirectory
from dpdmd_studio.core.errors import OutputError, RunError
from tiny_runs import request_stop


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", {"config": {"steps": 3}}, ["a cat", "a dog"])


def test_settings_and_prompts_come_back(run):
    again = RunDirectory.open(run.path)
    assert again.settings()["config"] == {"steps": 3}
    assert again.prompts() == ["a cat", "a dog"]


def test_metrics_survive_a_line_cut_off_by_a_crash(run):
    run.append_metrics({"step": 1, "loss": 0.5})
    run.append_metrics({"step": 2, "loss": 0.4})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.truncate_metrics(1)
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "damage",
    ["[1]", "null", "5", '"step"', "{}", '{"step": "1"}', '{"step": null}', '{"step": 1e999}',
     '{"step": NaN}', '{"step": true}', "[" * 100_000, '{"step": ' + "9" * 5000 + "}", "\udcff"],
)  # fmt: skip
def test_metrics_of_any_other_kind_are_left_out(run, damage):
    run.append_metrics({"step": 1, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("ab") as stream:
        stream.write(damage.encode("utf-8", "surrogateescape") + b"\n")
    run.append_metrics({"step": 2, "loss": 0.4})
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.truncate_metrics(1)
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


def test_folders_that_are_no_states_are_left_alone(run):
    for name in ("step-x", "step-", "step-00000003.old"):
        (run.states / name).mkdir()
    assert run.latest_state() is None
    with run.new_state(5):
        pass
    assert run.latest_state().name == "step-00000005" and (run.states / "step-x").is_dir()


def test_a_name_that_no_drive_takes_is_no_run_and_makes_none(tmp_path):
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(RunError, match="is not a run"):
            RunDirectory.open(path)
    with pytest.raises(OutputError, match="cannot be made"):
        RunDirectory.create(tmp_path / ("x" * 300), {}, ["a"])


def test_a_state_counts_only_when_whole(run):
    with run.new_state(1) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), run.new_state(2) as folder:  # noqa: PT012
        (folder / "a").write_text("2")
        1 / 0  # noqa: B018
    assert run.latest_state().name == "step-00000001"
    assert not list(run.states.glob(".*"))


def test_a_run_whose_empty_folders_were_lost_has_them_again_when_it_is_owned(run):
    """As after an archive or git, which keep none."""
    lost = (run.states, run.previews, run.checkpoints)
    for folder in lost:
        folder.rmdir()
    with RunDirectory.open(run.path).lock():
        assert all(folder.is_dir() for folder in lost)


def test_only_the_newest_states_are_kept(run):
    most = 0
    for step in range(1, 6):
        with run.new_state(step):
            most = max(most, len(list(run.states.iterdir())))
    assert len(list(run.states.iterdir())) == KEPT_STATES == most
    assert run.latest_state().name == "step-00000005"


def test_an_existing_run_is_not_overwritten_unasked(run):
    with pytest.raises(OutputError, match="--overwrite"):
        RunDirectory.create(run.path, {}, [])
    RunDirectory.create(run.path, {"new": 1}, [], overwrite=True)
    assert run.settings()["new"] == 1


def test_overwriting_a_run_leaves_other_files_alone(run):
    (run.path / "notes.txt").write_text("precious")
    run.append_metrics({"step": 1})
    RunDirectory.create(run.path, {}, [], overwrite=True)
    assert (run.path / "notes.txt").read_text() == "precious"
    assert run.metrics() == []


def test_foreign_settings_do_not_make_a_run(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(OutputError, match="not a run"):
        RunDirectory.create(tmp_path, {}, [], overwrite=True)


def test_prompts_with_other_line_separators_stay_whole(tmp_path):
    prompts = ["a cat\u2028on a mat", "a\x0cdog\x85"]
    run = RunDirectory.create(tmp_path / "run", {}, prompts)
    assert run.prompts() == prompts


def test_metrics_that_cannot_be_written_are_an_output_error(run):
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.jsonl"):
        run.append_metrics({"step": 1})


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(OutputError, match="not a run"):
        RunDirectory.create(tmp_path, {}, [], overwrite=True)
    assert (tmp_path / "holiday.jpg").read_text() == "precious"


@pytest.mark.parametrize("content", [None, "{}", "[]", '{"version": 99}', "nonsense"])
def test_folders_that_are_no_run_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(RunError):
        RunDirectory.open(tmp_path)


def test_stop_requests_are_files(run):
    assert not run.stop_requested
    request_stop(run)
    assert run.stop_requested
    run.clear_requests()
    assert not run.stop_requested


def test_a_run_owned_by_a_live_process_is_refused(run):
    with run.lock(), pytest.raises(RunError, match=f"process {os.getpid()}"), run.lock():
        pass
    with run.lock():  # freed by the first block's end
        pass


def test_the_lock_of_a_dead_process_is_taken_over(run):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    import socket

    owner = {"pid": child.pid, "host": socket.gethostname(), "since": 0}
    (run.path / "lock.json").write_text(json.dumps(owner))
    with run.lock():
        assert json.loads((run.path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (run.path / "lock.json").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file" / "run", {}, [])
