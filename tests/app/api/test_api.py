"""The HTTP interface of runs: what it answers, what it refuses, and how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from dpdmd_studio.app import jobs
from dpdmd_studio.app.api import MAX_BODY_BYTES, PREFIX, Response, run_detail
from dpdmd_studio.app.api.handler import Api
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.request import DistillRequest, ModelFiles
from dpdmd_studio.app.environment import Environment, readiness
from dpdmd_studio.app.jobs import files as job_files
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.library.home import home as data_folder
from dpdmd_studio.app.runs.directory import RunDirectory
from dpdmd_studio.app.runs.lock import owned
from dpdmd_studio.comfy_nodes.training.words import in_node_words
from tiny_runs import TINY

JSON = {"Content-Type": "application/json"}
PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"


@pytest.fixture(autouse=True)
def nobody_works(home, monkeypatch):
    """No worker process is started: one seems to live."""
    for module in (spawn, jobs):
        monkeypatch.setattr(module, "worker_lives", lambda: True)


@pytest.fixture
def models(files, tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    os.link(files["sd1"], folder / "base.safetensors")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    return folder


@pytest.fixture
def api(models, tmp_path) -> Api:
    return Api(lambda: [models], lambda: tmp_path / "loras")


def get(api: Api, address: str, headers: dict[str, str] | None = None, **query: str) -> Any:
    """(status, JSON) of a GET; its address is written below PREFIX."""
    return read(api.handle("GET", PREFIX + address, query, b"", headers or {}))


def post(api: Api, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
    text = json.dumps(body if body is not None else {}).encode()
    return read(api.handle("POST", PREFIX + path, {}, text, JSON | (headers or {})))


def read(response: Response) -> tuple[int, Any]:
    assert response.content_type == "application/json"
    return response.status, json.loads(response.body)


def make(models: Path, title: str = "A run", *, queue: bool = False) -> jobs.Job:
    request = DistillRequest(
        model=ModelFiles(checkpoint=str(models / "base.safetensors")),
        config=DistillConfig.from_dict(TINY),
        output=str(models / f"{title}.safetensors"),
    )
    return jobs.submit_distill(request, ["a cat", "a dog"], title, queue=queue)


def test_the_state_lists_jobs_newest_first_without_their_folders(api, models):
    first, second = make(models, "one"), make(models, "two", queue=True)
    status, state = get(api, "/state")
    assert status == 200 and state["worker"] is True
    assert [job["id"] for job in state["jobs"]] == [second.id, first.id]
    assert [job["place"] for job in state["jobs"]] == [0, None]
    assert set(state["jobs"][0]) == {
        "id", "kind", "title", "state", "place", "step", "steps", "seconds_per_step",
        "seconds_left", "message", "result", "created_at", "updated_at",
    }  # fmt: skip
    assert state["jobs"][1]["state"] == "new" and state["jobs"][1]["steps"] == TINY["steps"]


def test_the_state_says_how_the_trainer_stands(api, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "WORKER", Environment(tmp_path / "none"))
    monkeypatch.setattr(readiness, "ENGINE_LIBRARIES", {"no_such_library": (1, 0)})
    trainer = get(api, "/state")[1]["trainer"]
    assert (trainer["ready"], trainer["outdated"], trainer["setup"]) == (False, False, None)
    assert trainer["command"].endswith("install.py setup")
    status, job = post(api, "/setup")
    assert (status, job["kind"], job["state"], job["place"]) == (200, "setup", "queued", 0)
    assert post(api, "/setup")[1]["id"] == job["id"], "asked twice, done once"
    assert get(api, "/state")[1]["trainer"]["setup"]["id"] == job["id"]


def test_an_environment_of_an_older_version_counts_as_outdated(tmp_path):
    environment = Environment(tmp_path)
    environment.venv_python.parent.mkdir(parents=True)
    environment.venv_python.write_text("")
    assert not readiness.is_ready(environment) or not readiness.missing_libraries()
    environment.record(ready="yes", version="3.11", pins="older")
    assert readiness.is_ready(environment) and readiness.is_outdated(environment)
    pins = readiness.requirement_set((3, 11)).digest
    environment.record(pins=pins)
    assert not readiness.is_outdated(environment)


def filled(models: Path, updates: int = 1200) -> jobs.Job:
    """A run with curves, a damaged line, pictures and what is none."""
    job = make(models, "filled")
    run = RunDirectory(job.path)
    lines = [
        {"step": step, "fake_loss": 1 / step, "diversity_loss": 2.0, "other": "x"}
        for step in range(1, updates + 1)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (job.path / "metrics.jsonl").write_text(text + '\n{"step": 9, "fake_loss": NaN}\n{"st')
    run.append_metrics({"step": 250, "diversity_kept": 0.5}, "evaluations.jsonl")
    run.append_metrics({"step": 500, "diversity_kept": 0.75}, "evaluations.jsonl")
    for name in ("teacher.png", "step-00000100.png", "step-00000020.png", "other.png"):
        (run.previews / name).write_bytes(PNG + name.encode())
    (run.previews / "step-00000300.png").symlink_to(models.parent / "secret.safetensors")
    (job.path / "log.txt").write_text("one\ntwo\n")
    return job


def test_a_run_has_thinned_curves_pictures_settings_and_log(api, models):
    job = filled(models)
    status, run = get(api, f"/runs/{job.id}")
    assert status == 200 and run["title"] == "filled" and run["log"] == "one\ntwo"
    loss = {curve["name"]: curve for curve in run["loss"]}
    assert list(loss) == ["diversity_loss", "fake_loss"]
    points = loss["fake_loss"]["points"]
    assert loss["fake_loss"]["label"] == "Fake-score loss"
    assert len(points) == run_detail.MAX_POINTS
    assert points[0] == [1, 1.0] and points[-1] == [1200, 1 / 1200]
    assert all(value == 1 / step for step, value in points), "values as they were, not mixed"
    assert run["diversity"] == [
        {"name": "diversity_kept", "label": "Diversity kept", "points": [[250, 0.5], [500, 0.75]]}
    ]
    names = ["teacher.png", "step-00000020.png", "step-00000100.png"]
    assert [found["name"] for found in run["previews"]] == names
    assert [found["step"] for found in run["previews"]] == [0, 20, 100]
    assert run["settings"]["steps"] == TINY["steps"]
    assert run["settings"]["checkpoint"].endswith("base.safetensors")
    picture = api.handle("GET", run["previews"][2]["url"], {}, b"", {})
    assert (picture.status, picture.content_type) == (200, "image/png")
    assert picture.body == PNG + b"step-00000100.png"


def test_short_curves_are_whole():
    assert run_detail.thinned([1, 2, 3], 3) == [1, 2, 3]
    assert run_detail.thinned(list(range(10)), 4) == [0, 3, 6, 9]


@pytest.mark.parametrize(
    "name",
    [
        "step-00000300.png", "other.png", "step-00000999.png", "..%2Fsettings.json", "..",
        "teacher.png%00", "%2E%2E%2F%2E%2E%2Fsettings.json", "step-00000020.PNG",
    ],
)  # fmt: skip
def test_only_the_runs_own_pictures_are_given_out(api, models, name):
    job = filled(models, 2)
    status, answer = get(api, f"/runs/{job.id}/previews/{name}")
    assert status == 404 and "preview" in answer["error"]


@pytest.mark.parametrize(
    "id", ["none", "..", ".", "", "%2e%2e", "..%2Fruns", "a%2F..%2Fb", "%00", "C:", "x" * 300]
)
def test_a_name_that_is_no_run_is_not_found(api, models, id):
    make(models)
    for status, answer in (get(api, f"/runs/{id}"), post(api, f"/runs/{id}/stop")):
        assert status == 404 and answer["error"]


def test_actions_do_what_they_say(api, models, monkeypatch):
    job, other = make(models, "one"), make(models, "two", queue=True)
    assert post(api, f"/runs/{job.id}/start")[1]["place"] == 1
    assert post(api, f"/runs/{job.id}/move", {"place": 0})[1]["place"] == 0
    assert jobs.get_job(other.id).place == 1
    assert post(api, f"/runs/{job.id}/rename", {"title": "new\nname"})[1]["title"] == "new name"
    assert post(api, f"/runs/{job.id}/stop")[1]["state"] == "new"
    assert post(api, f"/runs/{job.id}/resume")[1]["state"] == "queued"
    copy = post(api, f"/runs/{job.id}/duplicate", {"title": "again"})[1]
    assert (copy["title"], copy["state"], copy["kind"]) == ("again", "new", "distill")
    deleted = post(api, f"/runs/{copy['id']}/delete")[1]
    assert copy["id"] not in [job.id for job in jobs.all_jobs()]
    back = post(api, f"/trash/{deleted['trash']}/restore")[1]
    assert (back["id"], back["title"]) == (copy["id"], "again")
    assert jobs.get_job(copy["id"]).state == "new"
    assert post(api, f"/trash/{deleted['trash']}/restore")[0] == 409
    with owned(job_files.job_folder(job.id) / "lock.json"):
        assert post(api, f"/runs/{job.id}/delete")[0] == 409
        assert post(api, f"/runs/{job.id}/start")[0] == 409
        assert post(api, f"/runs/{job.id}/stop")[1]["state"] == "stopping"
        assert (job.path / "stop").exists()


def test_a_run_gives_its_report_and_nothing_that_lies_elsewhere(api, models, tmp_path):
    job = make(models)
    folder = job.path / "report"
    assert get(api, f"/runs/{job.id}")[1]["report"] is False
    assert get(api, f"/runs/{job.id}/report")[0] == 404
    folder.mkdir()
    (folder / "report.html").write_text("<p>it</p>")
    found = api.handle("GET", f"{PREFIX}/runs/{job.id}/report", {}, b"", {})
    assert (found.status, found.body) == (200, b"<p>it</p>")
    assert found.content_type.startswith("text/html")
    assert "default-src 'none'" in found.headers["Content-Security-Policy"]
    assert get(api, f"/runs/{job.id}")[1]["report"] is True
    (folder / "report.html").unlink()
    (tmp_path / "secret.html").write_text("secret")
    (folder / "report.html").symlink_to(tmp_path / "secret.html")
    assert get(api, f"/runs/{job.id}/report")[0] == 404


def test_a_package_of_a_run_is_queued_with_the_name_of_its_lora(api, models):
    job = make(models)
    assert post(api, f"/runs/{job.id}/share")[0] == 409  # it has no LoRA yet
    lora = models / "my style.safetensors"
    lora.write_bytes(b"x")
    RunDirectory(job.path).write_json("result.json", {"lora": str(lora)})
    (data_folder() / "packages" / "my-style").mkdir(parents=True)
    status, package = post(api, f"/runs/{job.id}/share")
    assert (status, package["kind"], package["state"]) == (200, "package", "queued")
    assert package["title"] == "Package my style"
    task = json.loads((job_files.job_folder(package["id"]) / "task.json").read_text())
    output = str(data_folder() / "packages" / "my-style-2")
    expected = [str(job.path), "--name=my style", "--count=8", "--output", output, "--json"]
    assert task["arguments"] == ["package", *expected]


@pytest.mark.parametrize(
    ("action", "body", "status", "words"),
    [
        ("rename", {"title": " \n"}, 400, "empty"),
        ("rename", {"title": ["x"]}, 400, "list"),
        ("move", {"place": "1"}, 400, "whole number"),
        ("move", {"place": True}, 400, "whole number"),
        ("move", {"place": 0}, 409, "does not wait"),
        ("stop", {}, 409, "nothing to stop"),
        ("explode", {}, 404, "nothing under this address"),
    ],
)
def test_actions_that_cannot_be_done_say_why(api, models, action, body, status, words):
    job = make(models)
    found, answer = post(api, f"/runs/{job.id}/{action}", body)
    assert found == status and words in answer["error"]


def test_a_run_is_made_of_what_a_page_sends(api, tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "mine.safetensors").write_bytes(b"")
    body = {
        "checkpoint": "base.safetensors", "prompts": ["a cat", "# no", "a dog <lora:x:1>"],
        "title": "From a page", "output_name": "mine", "config": dict(TINY),
    }  # fmt: skip
    status, job = post(api, "/runs", body)
    assert (status, job["state"], job["title"]) == (200, "queued", "From a page")
    run = RunDirectory.open(job_files.job_folder(job["id"]))
    assert run.given_prompts() == ["a cat", "a dog"]
    assert run.settings()["output"] == str(tmp_path / "loras" / "mine-2.safetensors")
    assert run.settings()["config"]["steps"] == TINY["steps"]


def test_a_check_is_made_of_what_a_page_sends_or_of_a_run(api, models, home):
    body = {"checkpoint": "base.safetensors", "title": "First", "config": dict(TINY)}
    status, job = post(api, "/checks", body)
    assert (status, job["kind"], job["state"], job["title"]) == (200, "check", "queued", "First")
    assert post(api, "/checks", body)[1]["id"] == job["id"], "asked twice, done once"
    other = post(api, "/checks", body | {"prompts": ["a cat"]})[1]
    assert (job_files.job_folder(other["id"]) / "prompts.txt").read_text() == "a cat\n"
    run = make(models)
    of_run = post(api, f"/runs/{run.id}/check")[1]
    assert of_run["kind"] == "check" and of_run["id"] not in (job["id"], other["id"])
    assert post(api, f"/runs/{of_run['id']}/check")[0] == 409
    for change, words in (
        ({"checkpoint": "../secret.safetensors"}, "outside the folders"),
        ({"output_name": "x"}, "Unknown: output_name"),
        ({"config": {"steps": 0}}, "least allowed"),
        ({"prompts": [1]}, "no prompts"),
    ):
        status, answer = post(api, "/checks", body | change)
        assert status == 400 and words in answer["error"]
    assert len(jobs.all_jobs()) == 4


def test_a_finished_check_has_its_lines_and_gives_out_its_sheets_alone(api, home):
    body = {"checkpoint": "base.safetensors", "config": dict(TINY)}
    path = job_files.job_folder(post(api, "/checks", body)[1]["id"])
    folder = home / "checks" / "base-0123456789"
    folder.mkdir(parents=True)
    for name in ("teacher.png", "few-steps.png", "other.png"):
        (folder / name).write_bytes(PNG + name.encode())
    line = {"name": "Time", "found": "2 s", "verdict": "green", "advice": ""}
    result = {"folder": str(folder), "lines": [line], "table": "| t |"}
    (path / "queued").unlink()
    (path / "exit.json").write_text(json.dumps({"code": 0, "stopped": False, "at": 1.0}))
    (path / "output.txt").write_text(json.dumps(result) + "\n")
    run = get(api, f"/runs/{path.name}")[1]
    assert run["result"]["lines"] == [line] and run["findings"] == []
    assert [found["name"] for found in run["previews"]] == ["teacher.png", "few-steps.png"]
    picture = api.handle("GET", run["previews"][1]["url"], {}, b"", {})
    assert picture.body == PNG + b"few-steps.png"
    assert get(api, f"/runs/{path.name}/previews/other.png")[0] == 404


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "../secret.safetensors"}, "outside the folders"),
        ({"checkpoint": "/etc/passwd"}, "outside the folders"),
        ({"checkpoint": "none.safetensors"}, "no file"),
        ({"checkpoint": 3}, "a text was expected"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": [1]}, "no prompts"),
        ({"prompts": None}, "no prompts"),
        ({"output_name": "../x"}, "without"),
        ({"config": {"no_such": 1}}, "Unknown settings: no_such"),
        ({"config": {"steps": 0}}, "least allowed"),
        ({"config": []}, "no table"),
        ({"device": "cuda"}, "Unknown: device"),
    ],
)
def test_a_run_that_cannot_be_is_refused_and_leaves_nothing(api, tmp_path, change, words):
    body = {"checkpoint": "base.safetensors", "prompts": "a cat", "config": dict(TINY)}
    status, answer = post(api, "/runs", body | change)
    assert status == 400 and words in answer["error"]
    assert jobs.all_jobs() == []


def test_inspect_stays_in_the_folders(api, models, tmp_path):
    status, facts = get(api, "/inspect", path="base.safetensors")
    assert (status, facts["family"], "hashes" in facts) == (200, "sd1", False)
    assert (
        len(get(api, "/inspect", path="base.safetensors", hashes="1")[1]["hashes"]["sha256"]) == 64
    )
    for path in (str(tmp_path / "secret.safetensors"), "../secret.safetensors", "", "\x00"):
        assert get(api, "/inspect", path=path)[0] == 400


FOREIGN = ("http://evil.example", "null", "http://127.0.0.1:8188.evil.example", "http://[", "x")


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_are_refused(api, method, origin):
    headers = JSON | {"Origin": origin, "Host": "127.0.0.1:8188"}
    for more in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        response = api.handle(method, PREFIX + "/state", {}, b"{}", headers | more)
        assert response.status == 403 and b"another site" in response.body


def test_the_servers_own_pages_are_answered(api):
    own = {"origin": "http://127.0.0.1:8188", "HOST": "127.0.0.1:8188"}
    assert get(api, "/state", own)[0] == 200
    behind_a_proxy = {
        "Origin": "https://my.site",
        "Host": "inner:1",
        "Sec-Fetch-Site": "same-origin",
    }
    assert get(api, "/state", behind_a_proxy)[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"title=x", "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b" " * (MAX_BODY_BYTES + 1), "application/json", 413),
    ],
    ids=["text", "none", "form", "cut off", "list", "bytes", "deep", "large"],
)
def test_bodies_that_are_no_json_object_are_refused(api, models, body, kind, status):
    job = make(models)
    headers = {"Content-Type": kind} if kind else {}
    path = f"{PREFIX}/runs/{job.id}/start"
    assert api.handle("POST", path, {}, body, headers).status == status
    assert jobs.get_job(job.id).state == "new"


@pytest.mark.parametrize("path", ["/", "", "/runs", "/state/x", "/../state", "/STATE"])
def test_other_addresses_are_not_found(api, path):
    assert get(api, path)[0] == 404
    assert read(api.handle("DELETE", PREFIX + "/state", {}, b"", {}))[0] == 404
    assert read(api.handle("GET", "/elsewhere/state", {}, b"", {}))[0] == 404


def test_a_damaged_run_is_shown_and_hides_no_other(api, models):
    job, bad = make(models, "fine"), make(models, "bad")
    (bad.path / "result.json").write_text('{"lora": NaN, "deep": [Infinity]}')
    (bad.path / "progress.json").write_text("{")
    state = get(api, "/state")[1]
    assert {found["id"] for found in state["jobs"]} == {job.id, bad.id}
    assert next(j for j in state["jobs"] if j["id"] == bad.id)["result"] == {
        "lora": None, "deep": [None],
    }  # fmt: skip
    (bad.path / "settings.json").write_text("[]")
    status, run = get(api, f"/runs/{bad.id}")
    assert (status, run["state"]) == (200, "failed")


def test_a_mistake_of_ours_is_an_answer_too(api, monkeypatch, caplog):
    monkeypatch.setattr(jobs, "all_jobs", lambda: 1 / 0)
    status, answer = get(api, "/state")
    assert status == 500 and "log" in answer["error"]
    assert "ZeroDivisionError" in caplog.text


def test_the_state_of_many_runs_costs_each_no_more_than_that_of_few(api, models):
    first = filled(models, 20)

    def processor_seconds(runs: int) -> float:
        for count in range(runs - 1):
            folder = first.path.with_name(f"run-{count}")
            subprocess.run(["cp", "-r", f"{first.path}/.", folder], check=True)
        times = []
        for _ in range(5):
            began = time.process_time()
            assert len(get(api, "/state")[1]["jobs"]) == runs
            times.append(time.process_time() - began)
        return min(times)

    few = processor_seconds(5)
    assert processor_seconds(50) < 20 * few  # ten times as many, and twice that for chance


def test_what_is_said_to_people_is_in_the_words_of_the_pages(models, tmp_path):
    content = {
        "findings": [{"title": "NaN", "text": "A copy with --dtype float32 helps."}],
        "result": {"lines": [{"name": "Number format", "advice": "Choose --dtype float32."}]},
        "message": "Lower --resolution, or close what else runs.",
        "log": "worker distill --dtype bfloat16",
    }
    api = Api(lambda: [models], lambda: tmp_path, {"echo": lambda _: content}, in_node_words)
    status, found = post(api, "/echo")
    assert status == 200 and found["log"] == content["log"]
    dtype = in_node_words("--dtype")
    assert "--" not in dtype and dtype in found["findings"][0]["text"]
    assert found["result"]["lines"][0]["advice"] == f"Choose {dtype} float32."
    assert found["message"].startswith("Lower the resolution input,")
    wrong = {"checkpoint": "base.safetensors", "prompts": "a cat", "config": {"anchor_step": 99}}
    status, found = post(api, "/runs", wrong)
    assert status == 400 and "Lower anchor_step in settings_json" in found["error"]
