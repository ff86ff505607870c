"""In a real ComfyUI: distil in the graph, watch it, cancel it, and lose its process.

Needs COMFYUI_DIR, and COMFYUI_PYTHON where that is not the folder's own `.venv` or `venv`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui_files import teacher_in
from comfyui_server import ComfyUI, Graph, Listener, error_of, needs_comfyui
from safetensors.torch import load_file

pytestmark = needs_comfyui
TEACHER = "emoji-sd3.safetensors"
QUICK = {
    "evaluation_prompts": 0, "save_every": 4, "fake_updates": 1, "warmup_steps": 1,
    "student_rank": 4, "fake_rank": 4,
}  # fmt: skip
CANCEL_SECONDS = 5.0


@pytest.fixture(scope="module", autouse=True)
def teacher(comfyui: ComfyUI) -> None:
    """The embedded teacher among the host's checkpoints."""
    teacher_in(comfyui.base / "models")


@pytest.fixture
def listener(comfyui: ComfyUI) -> Iterator[Listener]:
    found = comfyui.listen("distil")
    yield found
    found.close()


def node(kind: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def distil(name: str, steps: int, *, settings: dict[str, object] | None = None, **more: object):
    inputs = {
        "checkpoint": TEACHER, "prompts": "a red circle\na blue square", "output_name": name,
        "preset": "none", "mode": "wait", "steps": steps, "num_steps": 4, "resolution": "",
        "batch_size": 2, "student_rank": 0, "student_lr": 1e-3, "teacher_guidance": 0.0,
        "diversity_weight": 0.05, "seed": 0,
        "settings_json": json.dumps(QUICK | {"preview_every": 3} | (settings or {})),
    }  # fmt: skip
    return node("DPDMDDistill", **(inputs | more))


def lora_path(comfyui: ComfyUI, name: str) -> Path:
    return comfyui.base / "models" / "loras" / f"{name}.safetensors"


def graph(name: str, steps: int, **more: object) -> Graph:
    """The node, and core's nodes that take what it puts out."""
    return {
        "distil": distil(name, steps, **more),
        "model": node("CheckpointLoaderSimple", ckpt_name=TEACHER),
        "with": node("LoraModelLoader", model=["model", 0], lora=["distil", 0],
                     strength_model=1.0, bypass=False),
        "yes": node("RandomConditioning", seed=1, width=64, pooled=32),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "save": node("SaveLoRA", lora=["distil", 0], prefix="loras/again"),
        "plot": node("LossGraphNode", loss=["distil", 1], filename_prefix="loss"),
        "say": node("PreviewAny", source=["distil", 2]),
    }  # fmt: skip


def job_of(comfyui: ComfyUI, title: str) -> dict[str, Any]:
    jobs = comfyui.get("/api/dpdmd/v1/state")["jobs"]
    return next(job for job in jobs if job["title"] == title)


def running(comfyui: ComfyUI, title: str, step: int) -> dict[str, Any]:
    """The job when it has done so many updates."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        jobs = comfyui.get("/dpdmd/v1/state")["jobs"]
        found = next((job for job in jobs if job["title"] == title), None)
        if found and found["state"] == "running" and found["step"] >= step:
            return found
        assert not found or found["state"] not in ("failed", "finished"), found
        time.sleep(0.1)
    raise AssertionError("it did not begin to train")


def settled(comfyui: ComfyUI, title: str) -> dict[str, Any]:
    """The job when no process works on it any longer."""
    until = time.monotonic() + 120
    while job_of(comfyui, title)["state"] in ("starting", "running", "stopping"):
        assert time.monotonic() < until
        time.sleep(0.1)
    return job_of(comfyui, title)


def test_a_lora_is_made_in_the_graph_and_core_nodes_take_it(comfyui, listener):
    prompt = comfyui.queue(graph("made", 8), "distil")
    history = comfyui.wait(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    outputs = history["outputs"]
    assert outputs["say"]["text"] == ["made.safetensors"]
    assert "made.safetensors is in the loras folder" in outputs["distil"]["text"][0]
    assert outputs["distil"]["images"] and outputs["plot"]["images"]
    made = load_file(lora_path(comfyui, "made"))
    (again,) = (comfyui.base / "output" / "loras").glob("again*.safetensors")
    kept = load_file(again)
    assert set(kept) == set(made) and all((kept[key] == made[key]).all() for key in made)
    assert "made.safetensors" in comfyui.get("/models/loras")
    progress = [
        e["data"]["value"] for e in listener.of("progress") if e["data"]["node"] == "distil"
    ]
    assert progress == sorted(progress) and progress[-1] == 8 and len(progress) > 2
    assert len(listener.of("picture")) >= 3, "previews of teacher and student"
    assert job_of(comfyui, "made")["state"] == "finished"


def test_what_was_trained_is_not_trained_again(comfyui):
    before = len(comfyui.get("/dpdmd/v1/state")["jobs"])
    outputs = comfyui.run({"distil": distil("made", 8, mode="background")})
    assert "was trained before" in outputs["distil"]["text"][0]
    assert len(comfyui.get("/dpdmd/v1/state")["jobs"]) == before
    outputs = comfyui.run({"distil": distil("made", 5)})
    assert "made-2.safetensors is in the loras folder" in outputs["distil"]["text"][0]
    assert "made.safetensors is taken" in outputs["distil"]["text"][0]


def test_cancel_keeps_what_there_is(comfyui, listener):
    prompt = comfyui.queue({"distil": distil("cut", 5000)}, "distil")
    running(comfyui, "cut", 3)
    listener.until(lambda event: event["type"] == "progress" and event["data"]["value"] >= 3)
    began = time.monotonic()
    assert comfyui.request("/interrupt", {})[0] == 200
    history = comfyui.wait(prompt)
    took = time.monotonic() - began
    kinds = [kind for kind, _ in history["status"]["messages"]]
    assert "execution_interrupted" in kinds
    assert took < CANCEL_SECONDS, took
    weights = load_file(lora_path(comfyui, "cut"))
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_up" in key)
    job = settled(comfyui, "cut")
    assert job["state"] == "stopped" and 3 <= job["step"] < 5000
    cut = {"lora_name": "cut.safetensors", "strength": 1.0}
    drawn = comfyui.run({
        "model": node("CheckpointLoaderSimple", ckpt_name=TEACHER),
        "lora": node("DPDMDLoadLora", model=["model", 0], **cut),
        "see": node("PreviewAny", source=["lora", 1]),
    })  # fmt: skip
    assert "4 steps" in drawn["lora"]["text"][0]


def test_a_killed_process_leaves_the_host_alive_and_the_run_goes_on(comfyui):
    text = distil("killed", 40, settings={"save_every": 2, "preview_every": 0})
    prompt = comfyui.queue({"distil": text})
    job = running(comfyui, "killed", 4)
    child = json.loads((comfyui.home / "runs" / job["id"] / "child.json").read_text())
    os.kill(child["pid"], signal.SIGKILL)
    message = error_of(comfyui.wait(prompt))
    assert "ended from outside" in message and "queue this node again" in message.lower()
    assert comfyui.answers()
    outputs = comfyui.run({"distil": text})
    said = outputs["distil"]["text"][0]
    after = int(re.search(r"goes on after update (\d+)", said)[1])
    assert after >= 2
    assert job_of(comfyui, "killed")["state"] == "finished"


def test_cancel_while_the_run_loads_ends_it_at_once(comfyui):
    prompt = comfyui.queue({"distil": distil("early", 5000)})
    until = time.monotonic() + 60
    while not any(
        job["title"] == "early" and job["state"] == "starting"
        for job in comfyui.get("/dpdmd/v1/state")["jobs"]
    ):
        assert time.monotonic() < until
        time.sleep(0.02)
    began = time.monotonic()
    comfyui.request("/interrupt", {})
    kinds = [kind for kind, _ in comfyui.wait(prompt)["status"]["messages"]]
    took = time.monotonic() - began
    assert "execution_interrupted" in kinds and took < CANCEL_SECONDS
    assert settled(comfyui, "early")["state"] in ("stopped", "interrupted")
    assert list(lora_path(comfyui, "early").parent.glob("early*")) == []


def test_a_run_outlives_the_worker_that_queued_it(comfyui):
    prompt = comfyui.queue({"distil": distil("orphan", 30, settings={"preview_every": 0})})
    running(comfyui, "orphan", 2)
    worker = json.loads((comfyui.home / "worker.lock").read_text())
    os.kill(worker["pid"], signal.SIGKILL)
    history = comfyui.wait(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    assert lora_path(comfyui, "orphan").exists()


def test_a_background_run_gives_its_lora_when_it_is_done(comfyui):
    text = distil("later", 12, mode="background")
    wanted = {"distil": text, "say": node("PreviewAny", source=["distil", 2])}
    outputs = comfyui.run(wanted)
    assert "Run" in outputs["distil"]["text"][0] and "say" not in outputs
    seen = comfyui.run({
        "runs": node("DPDMDRuns", run="the newest run", action="look"),
        "see": node("PreviewAny", source=["runs", 1]),
    })  # fmt: skip
    assert seen["see"]["text"][0].startswith("later\n")
    until = time.monotonic() + 180
    while job_of(comfyui, "later")["state"] != "finished" and time.monotonic() < until:
        time.sleep(0.2)
    assert comfyui.run(wanted)["say"]["text"] == ["later.safetensors"]


def test_a_model_names_its_file_and_its_patches_are_told(comfyui):
    model = {
        "model": node("CheckpointLoaderSimple", ckpt_name=TEACHER),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], lora_name="made.safetensors",
                     strength_model=1.0),
    }  # fmt: skip
    wired = distil("wired", 3, model=["lora", 0])
    outputs = comfyui.run({**model, "distil": wired})
    said = outputs["distil"]["text"][0]
    assert f"{TEACHER}, the file of the connected MODEL" in said
    assert "teacher_lora" in said and "patched weights" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": "# only a remark"}, "holds no prompts"),
        ({"prompts_file": "none.txt"}, "no prompts file"),
        ({"output_name": "../x"}, "Name the LoRA"),
        ({"settings_json": "{"}, "not valid JSON"),
        ({"settings_json": '{"stepz": 1}'}, "stepz"),
        ({"resolution": "7"}, "outside 16 to 8192"),
        ({"preset": "6gb"}, "no preset for sd3 on 6gb"),
    ],
)
def test_wrong_inputs_are_told_on_the_node(comfyui, change, words):
    wrong = distil("wrong", 2)
    wrong["inputs"] |= change
    message = comfyui.failure({"distil": wrong})
    assert words in message
    assert not lora_path(comfyui, "wrong").exists()


def test_a_run_that_has_gone_is_told(comfyui):
    message = comfyui.failure({"runs": node("DPDMDRuns", run="gone · title", action="look")})
    assert "There is no run gone" in message


def test_the_panel_s_requests_are_answered_under_both_addresses(comfyui):
    for prefix in ("", "/api"):
        assert comfyui.get(f"{prefix}/dpdmd/v1/state")["trainer"]["ready"] is True
    job = job_of(comfyui, "made")
    run = comfyui.get(f"/dpdmd/v1/runs/{job['id']}")
    assert run["loss"][0]["name"] == "diversity_loss"
    assert run["previews"][0]["name"] == "teacher.png"
    status, content = comfyui.request(run["previews"][-1]["url"])
    assert status == 200 and content.startswith(b"\x89PNG")
    for path in (
        f"/dpdmd/v1/runs/{job['id']}/previews/..%2Fsettings.json",
        "/dpdmd/v1/runs/..%2F..",
    ):
        assert comfyui.request(path)[0] == 404
    status, content = comfyui.request("/dpdmd/v1/runs/x/stop", {"text": "x" * 11_000_000})
    assert status == 413
    foreign = {"Origin": "http://evil.example", "Host": "evil.example:1"}
    assert comfyui.request("/dpdmd/v1/state", **foreign)[0] == 403


def test_the_host_starts_quickly_and_loads_no_heavy_library(comfyui):
    line = re.search(r"([\d.]+) seconds: .*comfyui-dp\.dmd-main", comfyui.said())
    assert line and float(line[1]) <= 0.3
