"""Jobs without a worker: states read from the directories, the queue, and what people do with them.

No process is started here; tests/app/jobs/test_jobs_worker.py does that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pytest
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles, TeacherLora
from dpdmd_studio.app.jobs import files as job_files
from dpdmd_studio.app.jobs import queue, spawn, worker
from dpdmd_studio.app.jobs.job import State
from dpdmd_studio.app.runs import exit_note
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.lock import LOCK_VERSION, owned
from dpdmd_studio.app.runs.process_identity import identity_of
from dpdmd_studio.app.runs.settings_file import import_settings
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import (
    CheckpointError,
    DPDMDError,
    OutputError,
    PromptError,
    RunError,
    SettingsError,
)
from tiny_runs import TINY

PROMPTS = ["a cat", "a {red|blue} dog"]


@pytest.fixture(autouse=True)
def nobody_works(home, monkeypatch):
    """No worker process is started: one seems to live."""
    monkeypatch.setattr(spawn, "worker_lives", lambda: True)


@pytest.fixture
def request_(files, tmp_path) -> DistillRequest:
    return DistillRequest(
        model=ModelFiles(checkpoint=str(files["sd1"])),
        config=DistillConfig.from_dict(TINY),
        output=str(tmp_path / "student.safetensors"),
    )


@pytest.fixture
def job(request_) -> jobs.Job:
    return jobs.submit_distill(request_, PROMPTS, "A <b>title</b>", queue=False)


@pytest.fixture(scope="module")
def living():
    """Another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def held():
    """The locks that a test holds."""
    with contextlib.ExitStack() as stack:
        yield stack


def write(job: jobs.Job, name: str, **facts) -> None:
    (job.path / name).write_text(json.dumps(facts))


def own(job: jobs.Job, name: str, held: contextlib.ExitStack | None) -> None:
    """Take the lock `name` in the job's folder; without `held` it is what a dead owner left."""
    if held is not None:
        held.enter_context(owned(job.path / name))
    facts = {"pid": DEAD if held is None else os.getpid(), "host": socket.gethostname()}
    write(job, name, version=LOCK_VERSION, **facts, since=100.0, about="")


def note_child(job: jobs.Job, pid: int) -> None:
    """Note a process that does the job's work."""
    facts = {"pid": pid, "host": socket.gethostname(), "identity": identity_of(pid) or "gone"}
    write(job, "child.json", **facts, since=100.0)


DEAD = 2**22 + 5
STATES = {
    # what lies in the folder -> the state that this means
    "nothing": ([], "new"),
    "queued": (["queued"], "queued"),
    "queued, worker died while it took it": (["queued", "taken by a dead one"], "queued"),
    "taken": (["taken"], "starting"),
    "taken again": (["taken", "progress of an earlier start"], "starting"),
    "loading": (["taken", "child", "locked", "loading"], "starting"),
    "training": (["taken", "child", "locked", "training"], "running"),
    "reporting": (["taken", "child", "locked", "reporting"], "running"),
    "in a terminal": (["locked", "training"], "running"),
    "worker died, child goes on": (["taken by a dead one", "child", "training"], "running"),
    "asked to stop": (["taken", "child", "locked", "training", "stop"], "stopping"),
    "killed while stopping": (["taken by a dead one", "training", "stop"], "interrupted"),
    "killed while training": (["locked by a dead one", "training"], "interrupted"),
    "killed before it trained": (["taken by a dead one"], "interrupted"),
    "killed while reporting": (["reporting"], "interrupted"),
    "signalled": (["training", "signal noted"], "interrupted"),
    "stopped": (["stopped"], "stopped"),
    "stopped while loading": (["loading", "stop noted"], "stopped"),
    "failed": (["failed"], "failed"),
    "failed outside the run": (["error noted"], "failed"),
    "failed, then resumed in a terminal": (["error noted before", "finished"], "finished"),
    "finished": (["finished", "success noted"], "finished"),
    "finished, queued again": (["finished", "queued"], "queued"),
}


def lay(job: jobs.Job, what: str, living: int, held: contextlib.ExitStack) -> None:
    """Put one of the things that STATES names into the job's folder."""
    simple = {"training": "running"}
    noted = {"signal": -9, "stop": -15, "error": 2, "success": 0}
    word, *rest = what.split()
    if what == "queued":
        queue.enqueue(job.path)
    elif what == "stop":
        (job.path / "stop").write_text("")
    elif word == "child":
        note_child(job, living)
    elif word in ("taken", "locked"):
        name = {"taken": "taken.json", "locked": "lock.json"}[word]
        own(job, name, None if "dead" in what else held)
    elif "noted" in rest:
        facts = {"code": noted[word], "message": "Why.", "stopped": word == "stop"}
        write(job, "exit.json", **facts, at=50.0 if "before" in rest else 300.0)
    elif what == "progress of an earlier start":
        write(job, "progress.json", status="running", updated_at=50.0)
    else:
        write(job, "progress.json", status=simple.get(what, what), updated_at=200.0, error="Why.")


@pytest.mark.parametrize("case", STATES)
def test_the_state_is_what_the_directory_says(case, job, living, held):
    things, state = STATES[case]
    for thing in things:
        lay(job, thing, living, held)
    found = jobs.get_job(job.id)
    assert found.state == state and found.state in get_args(State)
    assert found.live == (state in ("starting", "running", "stopping"))
    if state == "failed":
        assert found.message == "Why."
    if state == "interrupted":
        assert found.message


def test_progress_and_result_come_from_the_run(job, held):
    own(job, "lock.json", held)
    write(
        job, "progress.json", status="running", updated_at=200.0, step=3, steps=4,
        seconds_per_step=1.5, seconds_left=1.5,
    )  # fmt: skip
    write(job, "result.json", lora="/a/b.safetensors", step=3)
    (job.path / "log.txt").write_text("first\nupdate 2\rupdate 3\n")
    found = jobs.get_job(job.id)
    assert (found.step, found.steps, found.seconds_per_step, found.seconds_left) == (3, 4, 1.5, 1.5)
    assert found.result["lora"] == "/a/b.safetensors" and found.message == "update 3"
    assert jobs.log_tail(job.id, 1) == "update 3" and jobs.log_tail(job.id) == "first\nupdate 3"


def test_a_run_that_loads_again_shows_where_it_was(job, held):
    for name in ("step-00000002", "step-00000003", "step-x", ".step-00000009.part"):
        (job.path / "state" / name).mkdir()
    own(job, "lock.json", held)
    write(job, "progress.json", status="loading", updated_at=200.0)
    found = jobs.get_job(job.id)
    assert (found.state, found.step, found.steps) == ("starting", 3, 4)


def test_a_new_job_knows_its_steps_title_and_kind(job):
    assert (job.kind, job.title, job.state) == ("distill", "A <b>title</b>", "new")
    assert (job.step, job.steps) == (0, 4) and job.place is None
    assert abs(job.created_at - time.time()) < 60
    assert jobs.all_jobs() == [jobs.get_job(job.id)]


def test_the_queue_is_in_order_of_arrival_and_can_be_changed(request_):
    ids = [jobs.submit_distill(request_, PROMPTS, str(n)).id for n in range(4)]
    assert [jobs.get_job(id).place for id in ids] == [0, 1, 2, 3]
    jobs.move(ids[3], 0)
    jobs.move(ids[0], 99)
    assert [folder.name for folder in queue.waiting()] == [ids[3], ids[1], ids[2], ids[0]]
    assert jobs.stop(ids[1]).state == "new"
    assert [jobs.get_job(id).place for id in ids] == [2, None, 1, 0]
    assert jobs.start(ids[1]).place == 3 and jobs.start(ids[1]).place == 3
    with pytest.raises(RunError, match="does not wait"):
        jobs.move(jobs.stop(ids[2]).id, 0)


def test_any_number_of_moves_leaves_the_queue_as_a_list_would_be(request_):
    ids = [jobs.submit_distill(request_, PROMPTS, str(n)).id for n in range(5)]
    expected, rng = list(ids), random.Random(0)
    for count in range(150):
        id, place = rng.choice(ids), rng.randrange(-1, 7) if count % 3 else 1
        expected.remove(id)
        expected.insert(max(0, min(place, 4)), id)
        jobs.move(id, place)
        assert [folder.name for folder in queue.waiting()] == expected


@pytest.mark.parametrize("content", ["", "nonsense", "[]", "NaN", "1e999", "\x00", '"1"', "true"])
def test_a_damaged_place_means_last_and_loses_no_job(request_, content):
    ids = [jobs.submit_distill(request_, PROMPTS, str(n)).id for n in range(3)]
    (job_files.runs() / ids[0] / "queued").write_text(content)
    assert [folder.name for folder in queue.waiting()] == [ids[1], ids[2], ids[0]]
    jobs.move(ids[0], 0)
    assert [folder.name for folder in queue.waiting()] == ids
    added = jobs.submit_distill(request_, PROMPTS, "last")
    assert added.place == 3


def test_a_set_up_goes_first(request_):
    jobs.submit_distill(request_, PROMPTS, "later")
    assert jobs.submit_task("setup", ["--no-xformers"], "Set-up").place == 0


def test_two_front_ends_at_once_lose_nothing(request_):
    ids = [jobs.submit_distill(request_, PROMPTS, str(n)).id for n in range(4)]
    added, errors = [], []

    def front_end(seed: int) -> None:
        rng = random.Random(seed)
        added.append(jobs.submit_task("compare", ["x"], "t").id)
        for count in range(15):
            try:
                id = rng.choice(ids)
                action = rng.choice(["move", "move", "stop", "start", "rename", "list"])
                if action == "move":
                    jobs.move(id, rng.randrange(5))
                elif action == "rename":
                    jobs.rename(id, f"{seed}-{count}")
                elif action == "list":
                    assert {job.id for job in jobs.all_jobs()} >= set(ids)
                else:
                    {"stop": jobs.stop, "start": jobs.start}[action](id)
            except RunError:  # out of the queue meanwhile
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=front_end, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for id in ids:
        jobs.start(id)
    assert sorted(f.name for f in queue.waiting()) == sorted(ids + added) and len(added) == 4
    assert not list(job_files.runs().glob(".new-*"))


HOSTILE = [
    *("", ".", "..", "../x", "a/b", "a\\b", "/etc", "C:\\x", "C:", "\\\\server\\share", "a\x00b"),
    *("x" * 151, ".hidden", "a\nb", "ends.", "ends ", "no-such-run", "*", "a\u202eb"),
]


@pytest.mark.parametrize("id", HOSTILE)
def test_hostile_ids_are_refused_by_everything(id, job, home):
    (home / "victim").mkdir()
    alone = (jobs.get_job, jobs.start, jobs.stop, jobs.duplicate, jobs.delete, jobs.restore)
    for act in (
        *alone,
        jobs.log_tail,
        lambda name: jobs.move(name, 0),
        lambda name: jobs.rename(name, "x"),
    ):
        with pytest.raises(RunError, match=r"is not the name|There is no run"):
            act(id)
    assert (home / "victim").is_dir() and jobs.get_job(job.id).state == "new"


def test_a_link_in_the_folder_of_jobs_is_no_job(job, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    try:
        (job.path.parent / "link").symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert [found.id for found in jobs.all_jobs()] == [job.id]
    with pytest.raises(RunError):
        jobs.delete("link")
    assert target.is_dir()


def test_renaming_changes_the_title_alone(job):
    settings = (job.path / "settings.json").read_bytes()
    renamed = jobs.rename(job.id, "  <script>alert(1)</script>\n\x00 2  ")
    assert renamed.title == "<script>alert(1)</script> 2"
    assert dataclasses.replace(renamed, title=job.title, updated_at=job.updated_at) == job
    assert (job.path / "settings.json").read_bytes() == settings
    assert len(jobs.rename(job.id, "x" * 9999).title) == 200
    with pytest.raises(SettingsError, match="empty"):
        jobs.rename(job.id, " \n\x07 ")


def test_deleting_goes_to_the_trash_and_can_be_taken_back(job, home):
    place = jobs.delete(job.id)
    assert place == home / "trash" / job.id and (place / "settings.json").is_file()
    assert jobs.all_jobs() == []
    assert jobs.restore(job.id).title == job.title
    assert not place.exists()


def test_two_of_one_name_meet_in_the_trash(job):
    first = jobs.delete(job.id)
    (job.path).mkdir()
    second = jobs.delete(job.id)
    assert first != second and first.is_dir() and second.is_dir()


def test_a_deleted_job_leaves_the_queue_and_comes_back_into_it(job):
    jobs.start(job.id)
    jobs.delete(job.id)
    assert queue.waiting() == []
    assert jobs.restore(job.id).place == 0


@pytest.mark.parametrize("mark", ["taken.json", "child.json", "lock.json"])
def test_a_live_job_can_neither_be_deleted_nor_started(job, living, held, mark):
    if mark == "child.json":
        note_child(job, living)
    else:
        own(job, mark, held)
    with pytest.raises(RunError, match="Stop it"):
        jobs.delete(job.id)
    with pytest.raises(RunError, match="already"):
        jobs.start(job.id)
    assert jobs.stop(job.id).state == "stopping" and (job.path / "stop").exists()


def test_a_finished_job_is_neither_started_nor_stopped(job):
    write(job, "progress.json", status="finished", updated_at=1.0)
    with pytest.raises(RunError, match="Duplicate"):
        jobs.start(job.id)
    with pytest.raises(RunError, match="nothing to stop"):
        jobs.stop(job.id)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_duplicate_has_the_same_settings_and_prompts_and_another_output(job, prepared):
    if prepared:  # as the trainer leaves it: some prompts are held out
        (job.path / "given-prompts.txt").unlink()
        (job.path / "unprepared").unlink()
        (job.path / "evaluation-prompts.txt").write_text("a house\n")
    copy = jobs.duplicate(job.id, "Again")
    again = jobs.duplicate(job.id)
    assert (copy.state, copy.title, again.title) == ("new", "Again", "student-3")
    old, new, third = (RunDirectory.open(j.path) for j in (job, copy, again))
    assert new.settings()["config"] == old.settings()["config"]
    assert new.prompts() == old.prompts() == PROMPTS
    assert new.evaluation_prompts() == old.evaluation_prompts() == ["a house"] * prepared
    names = [Path(run.settings()["output"]).name for run in (old, new, third)]
    assert names == ["student.safetensors", "student-2.safetensors", "student-3.safetensors"]


DAMAGES = {
    "empty": {},
    "half made": {"prompts.txt": "a cat\n"},
    "cut off": {"settings.json": '{"version": 1, "config": {"st'},
    "not an object": {"settings.json": "[1, 2]"},
    "no config": {"settings.json": '{"version": 1}'},
    "binary": {"settings.json": "\x00\x01\x02"},
    "deep": {"settings.json": "[" * 100_000},
    "foreign task": {"task.json": '{"version": 1, "kind": "rm", "arguments": ["-rf"]}'},
    "a list of kinds": {"task.json": '{"kind": ["compare"]}'},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_a_failed_job_and_disturbs_no_other(damage, job):
    folder = job.path.parent / "damaged"
    folder.mkdir()
    for name, content in DAMAGES[damage].items():
        (folder / name).write_text(content)
    found = {item.id: item for item in jobs.all_jobs()}
    assert found[job.id].state == "new"
    assert found["damaged"].state == "failed" and "delete it" in found["damaged"].message
    with pytest.raises(RunError):
        jobs.start("damaged")
    with pytest.raises(RunError):
        jobs.duplicate("damaged")
    assert jobs.delete("damaged").is_dir()


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 1e400, "NaN", True, 10**400])
def test_odd_numbers_in_progress_and_notes_do_no_harm(job, value):
    names = ("status", "step", "steps", "seconds_per_step", "seconds_left", "updated_at", "error")
    write(job, "progress.json", **dict.fromkeys(names, value))
    write(job, "exit.json", code=value, message=value, stopped=value, at=value)
    write(job, "job.json", title=value, created_at=value)
    write(job, "result.json", lora=value)
    write(job, "taken.json", pid=value, host=value, identity=value, since=value)
    found = jobs.get_job(job.id)
    assert found.state in get_args(State) and isinstance(found.title, str)
    assert isinstance(found.step, int) and isinstance(found.updated_at, float)
    assert jobs.all_jobs()[0].id == job.id


BAD = {
    "no checkpoint": (CheckpointError, {"model": ModelFiles(checkpoint="/nowhere.safetensors")}),
    "no LoRA": (CheckpointError, {"teacher_loras": (TeacherLora(path="/nowhere.safetensors"),)}),
    "odd size": (
        SettingsError,
        {"config": DistillConfig.from_dict(TINY | {"resolution": "33x32"})},
    ),
    "no folder": (OutputError, {"output": "/nowhere/at/all.safetensors"}),
    "wrong ending": (OutputError, {"output": "lora.ckpt"}),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_found_before_there_is_a_job(mistake, request_):
    kind, change = BAD[mistake]
    with pytest.raises(kind):
        jobs.submit_distill(dataclasses.replace(request_, **change), PROMPTS, "x")
    assert jobs.all_jobs() == []


def test_no_prompts_are_refused(request_):
    with pytest.raises(PromptError):
        jobs.submit_distill(request_, [], "x")


@pytest.mark.parametrize(
    ("kind", "arguments"), [("rm", ["x"]), ("distill", []), ("compare", [1]), ("setup", ["a\x00b"])]
)
def test_a_wrong_task_is_refused(kind, arguments):
    with pytest.raises(SettingsError):
        jobs.submit_task(kind, arguments, "x")
    assert jobs.all_jobs() == []


def test_a_check_brings_its_files_and_is_not_queued_twice(request_, tmp_path):
    asked = dataclasses.replace(
        request_,
        config=dataclasses.replace(request_.config, device="cpu"),
        output="/nowhere/at/all.ckpt",  # it writes none
    )
    prompts = ["a cat", "#1 fan art", "a third, which is not drawn"]
    job = jobs.submit_check(asked, prompts)
    assert (job.kind, job.state, job.title) == ("check", "queued", "Check of sd1")
    task = json.loads((job.path / "task.json").read_text())
    checkpoint = str(Path(asked.model.checkpoint).resolve())
    assert task["arguments"] == [
        "check", checkpoint, "--settings=checked-settings.json", "--device=cpu",
        "--prompts=prompts.txt",
    ]  # fmt: skip
    assert "folder" not in task  # it runs in its own
    assert (job.path / "prompts.txt").read_text() == "a cat\n\\#1 fan art\n"
    settings = import_settings(job.path / "checked-settings.json")
    assert dataclasses.replace(settings, device="cpu") == asked.config
    assert jobs.submit_check(asked, prompts).id == job.id
    others = [jobs.submit_check(asked, []), jobs.submit_check(request_, prompts)]
    assert len({job.id, *(other.id for other in others)}) == 3
    jobs.stop(job.id)
    write(job, "exit.json", code=-15, message="", stopped=True, at=1.0)
    assert jobs.get_job(job.id).state == "stopped"
    assert jobs.get_job(job.id).message == "Stopped. What is finished is kept."
    again = jobs.submit_check(asked, prompts)
    assert (again.id, again.state) == (job.id, "queued")
    queue.dequeue(job.path)
    write(job, "exit.json", code=0, message="", stopped=False, at=1.0)
    assert jobs.get_job(job.id).state == "finished"
    assert jobs.submit_check(asked, prompts).id != job.id


def test_the_checkpoint_of_a_run_is_checked_with_what_the_run_has(request_, job):
    check = jobs.check_run(job.id)
    assert (check.path / "prompts.txt").read_text().splitlines() == PROMPTS
    assert import_settings(check.path / "checked-settings.json").steps == TINY["steps"]
    with pytest.raises(RunError, match="only a distillation"):
        jobs.check_run(check.id)
    missing = dataclasses.replace(request_, model=ModelFiles(checkpoint="/nowhere.safetensors"))
    with pytest.raises(CheckpointError):
        jobs.submit_check(missing, PROMPTS)
    assert len(jobs.all_jobs()) == 2


def test_a_step_is_noted_and_those_of_an_earlier_start_are_not(request_):
    job = jobs.submit_check(request_, PROMPTS)
    (job.path / "log.txt").write_text("--- 1\n[7/10] Late\n--- 2\nloading\n")
    assert worker._note_steps(job.path, 0) == 0
    (job.path / "log.txt").write_text("--- 1\n[7/10] Late\n--- 2\nloading\n[1/4] Early\n")
    assert worker._note_steps(job.path, 0) == 1
    assert (jobs.get_job(job.id).step, jobs.get_job(job.id).steps) == (0, 4)  # it has begun
    (job.path / "log.txt").write_text("[1/4] Early\n[4/4] Late\n")
    assert worker._note_steps(job.path, 1) == 4
    assert (jobs.get_job(job.id).step, jobs.get_job(job.id).steps) == (3, 4)


def test_a_task_keeps_its_command_line(tmp_path):
    for words in (["--lora", "x"], ["compare", "--lora", "x"]):
        task = json.loads((jobs.submit_task("compare", words, "").path / "task.json").read_text())
        assert task["arguments"] == ["compare", "--lora", "x"] and task["version"] == 1
    assert {job.title for job in jobs.all_jobs()} == {"compare"}


def test_the_result_of_a_task_is_what_it_printed(tmp_path):
    job = jobs.submit_task("package", ["x"], "p")
    (job.path / "queued").unlink()
    write(job, "exit.json", code=0, message="", stopped=False, at=1.0)
    (job.path / "output.txt").write_text('a line\n{"zip": "/a.zip"}\n')
    found = jobs.get_job(job.id)
    assert found.state == "finished" and found.result == {"zip": "/a.zip"}


def test_nothing_is_left_when_the_disk_is_full(request_, monkeypatch):
    def full(*_, **__):
        raise OutputError("the disk is full")

    monkeypatch.setattr(RunDirectory, "write_json", full)
    with pytest.raises(OutputError):
        jobs.submit_distill(request_, PROMPTS, "x")
    assert jobs.all_jobs() == [] and not list(job_files.runs().glob(".new-*"))


def test_the_end_of_a_job_is_noted_by_the_job_itself(job, monkeypatch):
    monkeypatch.setenv(exit_note.VARIABLE, str(job.path))
    exit_note.reserve(job.path)

    def fails(_: None) -> int:
        raise SettingsError("K is too large.")

    with pytest.raises(DPDMDError):
        exit_note.recorded(fails, None)
    found = jobs.get_job(job.id)
    assert (found.state, found.message) == ("failed", "K is too large.")
    assert not (job.path / exit_note.RESERVE).exists()
    with pytest.raises(ZeroDivisionError):
        exit_note.recorded(lambda _: 1 // 0, None)
    assert "ZeroDivisionError" in jobs.get_job(job.id).message


def test_the_command_line_shows_and_changes_the_queue(request_, job, capsys, home):
    second = jobs.submit_distill(request_, PROMPTS, "Second")

    def run(*words: str) -> object:
        assert main(["runs", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert [item["id"] for item in run("list")] == [second.id, job.id]
    assert run("start", job.id)["place"] == 1
    assert run("move", job.id, "1")["place"] == 0
    assert run("rename", job.id, "New")["title"] == "New"
    copy = run("duplicate", job.id)["id"]
    assert Path(run("delete", copy)["trash"]).is_dir()
    assert run("restore", copy)["state"] == "new"
    assert run("stop", job.id)["state"] == "new"
    assert run("log", job.id) == {"log": ""}
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["RUN", "STATE", "STEP", "TITLE"]
    assert any(line.split()[1:] == ["queued,", "place", "1", "0/4", "Second"] for line in shown)
    assert main(["runs", "stop", "../x"]) == 2
    assert "is not the name of a run" in capsys.readouterr().err


def test_distill_can_queue_instead_of_training(files, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    words = ["distill", str(files["sd1"]), "--prompts", str(prompts), "--resolution", "32x32"]
    words += ["--output", str(tmp_path / "queued.safetensors"), "--queue"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["place"], facts["title"]) == ("queued", 0, "queued")
    assert main([*words, "--run", str(tmp_path / "run")]) == 2
    assert "--queue keeps its runs" in capsys.readouterr().err


@pytest.mark.parametrize(("set_back", "state"), [(True, "running"), (False, "starting")])
def test_a_clock_that_jumped_does_not_hide_what_a_run_does(set_back, state, job, held):
    """Whose progress it is, its process's number tells, not which of two times is later."""
    own(job, "lock.json", held)  # since 100
    pid, updated_at = (os.getpid(), 50.0) if set_back else (DEAD, 200.0)
    write(job, "progress.json", status="running", pid=pid, updated_at=updated_at, step=3)
    assert jobs.get_job(job.id).state == state
    note_child(job, os.getpid())
    assert worker._may_be_ended(job.path) != set_back  # or what it has learned would be lost
