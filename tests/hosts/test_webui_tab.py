"""In real A1111, Forge, reForge, Neo: tab, requests, and a distillation from start to list.

Needs WEBUI_DIR, FORGE_DIR, REFORGE_DIR or NEO_DIR; see webui_server.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from comfyui_server import ROOT
from PIL import Image
from webui_files import small_sd1, wide_sd1
from webui_server import WebUI

TEACHER = ROOT / "trainer" / "assets" / "emoji-sd3.safetensors"
API = "/dpdmd/v1"
TINY = {"steps": 6, "student_rank": 4, "fake_rank": 4, "evaluate_every": 0, "preview_every": 3}
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "cross")]
SETTINGS = ("auto_setup", "exact_strength", "free_memory", "lora_folder")
COUNTED = ("dpdmd-start", "dpdmd-set-up", "dpdmd-checkpoint", "dpdmd_txt2img_accordion")


@pytest.fixture(scope="module", params=["WEBUI", "FORGE", "REFORGE", "NEO"])
def made(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[WebUI]:
    """A host with a checkpoint, not started."""
    server = WebUI(request.param, tmp_path_factory.mktemp(request.param.lower()))
    make = small_sd1 if server.kind == "WEBUI" else wide_sd1
    make(server.base / "models" / "Stable-diffusion")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def webui(made: WebUI) -> WebUI:
    """It, running."""
    if made.process is None or made.process.poll() is not None:
        made.start()
    return made


def config_of(webui: WebUI) -> dict[str, Any]:
    return webui.get("/config")


def element_ids(webui: WebUI) -> list[str]:
    """The names in the page in its order, but for those that hosts make anew at a reload."""
    named = [one["props"].get("elem_id") or "" for one in config_of(webui)["components"]]
    return [name for name in named if not name.startswith(("input-accordion-", "uuid_"))]


def pressed(webui: WebUI, elem_id: str) -> None:
    """Click a button of the page that takes no values."""
    config = config_of(webui)
    button = next(x["id"] for x in config["components"] if x["props"].get("elem_id") == elem_id)
    index = next(
        place
        for place, event in enumerate(config["dependencies"])
        if any(target in (button, [button, "click"]) for target in event["targets"])
    )
    body = {"data": [], "fn_index": index, "session_hash": "one"}
    assert webui.request("/run/predict", body)[0] == 200


def wait(webui: WebUI, condition: Callable[[], object], seconds: float = 180.0) -> None:
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError, AssertionError):
            if condition():
                return
        assert time.monotonic() - began < seconds, webui.said()[-3000:]
        time.sleep(0.3)


def post(webui: WebUI, path: str, body: object = None) -> tuple[int, Any]:
    status, content = webui.request(API + path, body if body is not None else {})
    return status, json.loads(content)


def run(webui: WebUI, name: str, **config: object) -> str:
    """The id of a distillation of the demo's teacher that has been queued."""
    request = {"checkpoint": str(webui.extension / "trainer/assets" / TEACHER.name)}
    request |= {"prompts": PROMPTS, "title": name, "config": TINY | config}
    status, job = post(webui, "/runs", request)
    assert status == 200, job
    return job["id"]


def state(webui: WebUI, id: str) -> str:
    return webui.get(f"{API}/runs/{id}")["state"]


def names_of_loras(webui: WebUI) -> list[str]:
    return [lora["name"] for lora in webui.get("/sdapi/v1/loras")]


def draws(webui: WebUI) -> None:
    """A picture of the loaded checkpoint: the host works."""
    picture, _ = webui.draw("a cat", width=64, height=64, steps=1, cfg_scale=1)
    assert picture.std() > 0


def test_everything_is_there_once_and_again_after_a_reload(webui):
    ids = element_ids(webui)
    assert [ids.count(name) for name in COUNTED] == [1, 1, 1, 1]
    assert [ids.count(f"setting_dpdmd_{name}") for name in SETTINGS] == [1, 1, 1, 1]
    if webui.kind == "WEBUI":  # Forge lets its API set everything
        webui.request("/sdapi/v1/options", {"dpdmd_lora_folder": "/elsewhere"})
    assert webui.get(f"{API}/state")["jobs"] == []
    scripts = webui.get("/sdapi/v1/scripts")["txt2img"]
    boots = webui.said().count("Startup time:")
    pressed(webui, "settings_restart_gradio")
    wait(webui, lambda: webui.said().count("Startup time:") > boots)
    wait(webui, lambda: webui.get(f"{API}/state")["worker"] is False)
    assert element_ids(webui) == ids
    assert webui.get("/sdapi/v1/scripts")["txt2img"] == scripts
    samplers = [item["name"] for item in webui.get("/sdapi/v1/samplers")]
    assert samplers.count("DP-DMD") == 1
    ours = [line for line in webui.said().splitlines() if re.search("dp.?dmd", line, re.I)]
    assert not [line for line in ours if re.search("error|warn|traceback", line, re.I)]


def test_the_extension_loads_in_half_a_second_of_a_free_machine(webui):
    records = webui.get("/internal/profile-startup")["records"]
    assert records["load scripts/dp_dmd.py"] < 0.5


def test_requests_of_others_are_refused(webui):
    assert webui.request(f"{API}/state", Host="evil.example")[0] == 403
    assert webui.request(f"{API}/state", Origin="http://evil.example")[0] == 403
    assert webui.request(f"{API}/inspect?path=/etc/passwd")[0] == 400
    assert webui.request(f"{API}/runs/..%2f..%2fetc")[0] == 404
    status, answer = post(webui, "/runs", {"checkpoint": "x", "prompts": "a" * 11_000_000})
    assert status == 413 and "10 MB" in answer["error"]
    status, answer = post(webui, "/runs", {"checkpoint": "gone.safetensors", "prompts": "a cat"})
    assert status == 400 and "gone.safetensors" in answer["error"]
    assert webui.get(f"{API}/state")["jobs"] == []


def test_a_run_ends_in_the_hosts_list_with_a_card_and_the_host_draws_meanwhile(webui, capsys):
    draws(webui)  # the first one loads the model, which may take as long as a short run
    id = run(webui, "mine", steps=24)
    wait(webui, lambda: webui.get(f"{API}/runs/{id}")["step"] >= 2)
    began = time.monotonic()
    draws(webui)
    drawn = time.monotonic() - began
    assert post(webui, f"/runs/{id}/stop")[0] == 200
    wait(webui, lambda: state(webui, id) == "stopped")
    wait(webui, lambda: "mine" in names_of_loras(webui))
    assert post(webui, f"/runs/{id}/resume")[0] == 200
    wait(webui, lambda: state(webui, id) == "finished")
    lora = webui.base / "models" / "Lora" / "mine.safetensors"
    assert lora.is_file()
    wait(webui, lambda: lora.with_suffix(".json").exists() and lora.with_suffix(".png").exists())
    card = json.loads(lora.with_suffix(".json").read_text())
    assert card["preferred weight"] == 1.0 and card["notes"].startswith("Euler, Simple, 4 steps")
    with Image.open(lora.with_suffix(".png")) as picture:
        assert picture.size[0] == picture.size[1]  # one image of the sheet, whole
    time.sleep(4)  # the model comes back
    draws(webui)
    with capsys.disabled():
        sys.stdout.write(f"\n{webui.kind}: a picture while training took {drawn:.1f} s\n")


def test_two_starts_at_once_and_a_killed_worker_leave_the_host_working(webui):
    first, second = run(webui, "one", steps=400), run(webui, "two")
    wait(webui, lambda: webui.get(f"{API}/runs/{first}")["step"] >= 1)
    assert state(webui, second) == "queued"
    for name in ("worker.lock", f"runs/{first}/child.json"):
        owner = json.loads((webui.home / name).read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner["pid"], signal.SIGKILL)
    wait(webui, lambda: state(webui, second) == "finished")
    assert state(webui, first) == "interrupted"
    draws(webui)
    assert post(webui, f"/runs/{first}/delete")[0] == 200


def test_a_host_that_is_killed_finds_its_run_again(webui):
    id = run(webui, "lasting", steps=30)
    wait(webui, lambda: webui.get(f"{API}/runs/{id}")["step"] >= 1)
    webui.stop()
    webui.log.unlink()
    webui.start()
    assert state(webui, id) in ("running", "stopping", "finished")
    wait(webui, lambda: state(webui, id) == "finished")
    wait(webui, lambda: "lasting" in names_of_loras(webui))
    lora = webui.base / "models" / "Lora" / "lasting.json"
    wait(webui, lora.exists)


@pytest.mark.parametrize(
    "flags",
    [("--api-auth", "ann:one"), ("--gradio-auth", "bob:two"),
     ("--api-auth", "ann:one", "--gradio-auth", "bob:two")],
)  # fmt: skip
def test_passwords_of_the_host_are_asked_for(made, flags):
    made.stop()
    made.log.unlink()
    made.start(*flags)

    def status(text: str) -> int:
        given = {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}
        return made.request(f"{API}/state", **(given if text else {}))[0]

    try:
        assert (status(""), status("ann:two"), status("eve:one")) == (401, 401, 401)
        for flag, user in zip(flags[::2], flags[1::2], strict=True):
            assert status(user) == 200, flag
        assert made.request(f"{API}/runs/x/previews/teacher.png")[0] == 401
    finally:
        made.stop()
