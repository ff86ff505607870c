"""The web UI's tab, settings, requests and memory, with a stand-in for the host."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpdmd_studio.app import jobs
from dpdmd_studio.app.config.distill_config import DistillConfig
from dpdmd_studio.app.config.presets import DEMO
from dpdmd_studio.app.environment import readiness
from dpdmd_studio.app.gui.forms import compare as compare_form
from dpdmd_studio.app.gui.forms import distill as distill_form
from dpdmd_studio.app.gui.forms import distill_hints
from dpdmd_studio.app.gui.forms import trainer as trainer_form
from dpdmd_studio.app.gui.widgets import run_pieces, runs_view, wiring
from dpdmd_studio.app.jobs import Job, spawn
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.app.library import surroundings
from dpdmd_studio.app.library.surroundings import Surroundings
from dpdmd_studio.app.report.images import image_grid
from dpdmd_studio.core.errors import PromptError
from dpdmd_studio.core.recipe.few_step import default_recipe
from dpdmd_studio.core.recipe.recipe import METADATA_KEY as RECIPE_KEY
from dpdmd_studio.webui_extension.host import folders, loras, page
from dpdmd_studio.webui_extension.host import models as host_models
from dpdmd_studio.webui_extension.training import (
    api_routes,
    finished,
    memory,
    settings,
    train_tab,
)
from PIL import Image
from safetensors.torch import save_file

EMOJI = str(sources.ASSETS / "emoji-sd3.safetensors")
LOCAL = {"host": "127.0.0.1:7860"}


@pytest.fixture(autouse=True)
def alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is started, no real folders are looked at, and the pages know no host."""
    monkeypatch.setattr(spawn, "ensure_worker", lambda: False)
    monkeypatch.setattr(sources, "default_folders", list)
    monkeypatch.setattr(surroundings, "current", surroundings.ALONE)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A host's folder of models."""
    for name in ("Stable-diffusion", "Lora"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path / "models"


def job(folder: Path, state: str = "running", kind: str = "distill", **facts) -> Job:
    return Job(id=folder.name, path=folder, kind=kind, title="a run", state=state, **facts)


# Who asks


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode(), **LOCAL}


KNOWN = [("ann", "pass:word"), ("bob", "bürste")]


@pytest.mark.parametrize("given", ["ann:pass:word", "bob:bürste"])
def test_either_users_password_lets_in(given):
    assert api_routes.refusal(basic(given), KNOWN, public=False) is None


@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        basic("ann:password"),
        basic("ann:bürste"),
        basic("ann"),
        basic(""),
        LOCAL | {"authorization": "Basic !!!"},
        LOCAL | {"authorization": basic("bob:bürste")["authorization"].replace("Basic", "Bearer")},
    ],
)
@pytest.mark.parametrize("public", [False, True])
def test_without_the_right_password_nothing_is_answered(headers, public):
    refused = api_routes.refusal(headers, KNOWN, public=public)
    assert refused is not None and refused.status == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert "--api-auth" in json.loads(refused.body)["error"]


@pytest.mark.parametrize(
    ("name", "private", "public"),
    [
        ("localhost:7860", None, None),
        ("127.0.0.1", None, None),
        ("[::1]:7860", None, None),
        ("evil.example:7860", 403, None),
        ("192.168.0.7:7860", 403, None),
        ("", 403, None),
        ("[", 403, None),
    ],
)
def test_names_that_resolve_here_are_refused_unless_others_may_connect(name, private, public):
    for is_public, expected in ((False, private), (True, public)):
        refused = api_routes.refusal({"host": name}, [], public=is_public)
        assert (refused.status if refused else None) == expected


@pytest.fixture
def served(monkeypatch, models):
    """(application, the options that the host was started with)."""
    from starlette.applications import Starlette

    started = SimpleNamespace(credentials=[], public=False)
    monkeypatch.setattr(page, "credentials", lambda: started.credentials)
    monkeypatch.setattr(page, "is_public", lambda: started.public)
    monkeypatch.setattr(folders, "model_folders", lambda: [models / "Stable-diffusion"])
    monkeypatch.setattr(folders, "lora_folder", lambda: models / "Lora")
    monkeypatch.setattr(page, "option", lambda name, default: default)
    monkeypatch.setattr(page, "on", lambda event, function: function(None, app))
    app = Starlette()
    api_routes._api.cache_clear()
    api_routes.register()
    yield app, started
    api_routes._api.cache_clear()


def ask(app, method: str, path: str, body: bytes = b"", **headers: str):
    """(status, JSON) of a request to the application."""
    named = {**LOCAL, **{name.replace("_", "-"): value for name, value in headers.items()}}
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": [(k.encode(), v.encode()) for k, v in named.items()],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    parts = [body[at : at + 65536] for at in range(0, len(body) or 1, 65536)]
    sent: list[dict] = []

    async def receive() -> dict:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(content)


def test_the_interface_is_served_below_its_prefix(served, files, models):
    app, _ = served
    assert ask(app, "GET", "/dpdmd/v1/state")[1]["jobs"] == []
    checkpoint = models / "Stable-diffusion" / "base.safetensors"
    checkpoint.write_bytes(files["sd1"].read_bytes())
    body = json.dumps({"checkpoint": str(checkpoint), "prompts": ["a cat"], "title": "Mine"})
    status, made = ask(
        app, "POST", "/dpdmd/v1/runs", body.encode(), content_type="application/json"
    )
    assert status == 200 and made["title"] == "Mine"
    found = ask(app, "GET", f"/dpdmd/v1/runs/{made['id']}")[1]
    assert found["settings"]["output"] == str(models / "Lora" / "Mine.safetensors")
    assert ask(app, "GET", "/dpdmd/v1/inspect?path=/etc/passwd")[0] == 400
    assert ask(app, "GET", "/dpdmd/v1/runs/..%2F..%2Fetc")[0] == 404


def test_the_served_interface_refuses_before_it_reads(served):
    app, started = served
    assert ask(app, "GET", "/dpdmd/v1/state", host="evil.example")[0] == 403
    assert ask(app, "GET", "/dpdmd/v1/state", origin="http://evil.example")[0] == 403
    large = b" " * (10_000_001)
    assert ask(app, "POST", "/dpdmd/v1/runs", large, content_type="application/json")[0] == 413
    started.credentials = KNOWN
    assert ask(app, "GET", "/dpdmd/v1/state")[0] == 401
    right = basic("ann:pass:word")["authorization"]
    assert ask(app, "GET", "/dpdmd/v1/state", authorization=right)[0] == 200
    foreign = {"authorization": right, "origin": "http://evil.example"}
    assert ask(app, "GET", "/dpdmd/v1/state", **foreign)[0] == 403


# Memory


class FakeHost:
    """A host with a model, whose moves are noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves: list[str] = []
        self.every: list[Job] = []
        self.model, self.wanted, self.locked = True, True, False
        self.failing = ""
        monkeypatch.setattr(page, "option", lambda name, default: self.wanted)
        monkeypatch.setattr(host_models, "has_model", lambda: self.model)
        monkeypatch.setattr(host_models, "generating", self.lock)
        monkeypatch.setattr(host_models, "unload_model", lambda: self.move("unload"))
        monkeypatch.setattr(host_models, "reload_model", lambda: self.move("reload"))
        monkeypatch.setattr(jobs, "all_jobs", lambda: self.every)
        monkeypatch.setattr(jobs, "worker_lives", lambda: True)

    @contextlib.contextmanager
    def lock(self):
        assert not self.locked
        self.locked = True
        try:
            yield
        finally:
            self.locked = False

    def move(self, name: str) -> None:
        assert self.locked
        self.moves.append(name)
        if name == self.failing:
            raise RuntimeError("CUDA out of memory")


@pytest.fixture
def fake(monkeypatch) -> FakeHost:
    return FakeHost(monkeypatch)


@pytest.mark.parametrize("end", ["finished", "stopped", "failed", "interrupted"])
def test_the_model_goes_for_a_run_and_comes_back_however_it_ends(fake, tmp_path, end):
    keeper = memory.Keeper()
    assert not keeper.look() and fake.moves == []
    for state in ("queued", "starting", "running", "stopping"):
        fake.every = [job(tmp_path, state)]
        assert keeper.look() and keeper._unloaded and fake.moves == ["unload"]
    fake.every = [job(tmp_path, end)]
    assert not keeper.look() and not keeper._unloaded and fake.moves == ["unload", "reload"]
    keeper.look()
    assert fake.moves == ["unload", "reload"]


def test_a_set_up_or_a_switched_off_setting_or_no_model_move_nothing(fake, tmp_path):
    keeper = memory.Keeper()
    fake.every = [job(tmp_path, "running", "setup")]
    keeper.look()
    fake.every, fake.wanted = [job(tmp_path)], False
    keeper.look()
    fake.wanted, fake.model = True, False
    keeper.look()
    assert fake.moves == []
    fake.model = True  # it has been loaded meanwhile
    keeper.look()
    assert fake.moves == ["unload"]


def test_a_generation_has_its_model_and_the_run_gets_the_memory_again(fake, tmp_path):
    keeper = memory.Keeper()
    fake.every = [job(tmp_path)]
    keeper.look()
    with fake.lock():
        keeper.before_generation()
        keeper.before_generation()
    assert fake.moves == ["unload", "reload"]
    keeper.look()
    assert fake.moves == ["unload", "reload", "unload"]


def test_what_fails_is_tried_again_until_the_model_is_back(fake, tmp_path):
    keeper = memory.Keeper()
    fake.every, fake.failing = [job(tmp_path)], "unload"
    with pytest.raises(RuntimeError):
        keeper.look()
    fake.every, fake.failing = [job(tmp_path, "failed")], "reload"
    with pytest.raises(RuntimeError):
        keeper.look()
    assert keeper._unloaded
    fake.failing = ""
    keeper.look()
    assert not keeper._unloaded and fake.moves == ["unload", "reload", "reload"]


def test_memory_is_free_before_a_run_is_queued(fake, monkeypatch):
    monkeypatch.setattr(memory, "RESERVE_SECONDS", 0.4)
    monkeypatch.setattr(memory, "BUSY_PAUSE", 0.05)
    monkeypatch.setattr(memory, "PAUSE", 0.05)
    keeper = memory.Keeper()
    keeper.start()
    thread = keeper._thread
    keeper.start()
    assert keeper._thread is thread
    keeper.before_start()
    assert fake.moves == ["unload"]
    for _ in range(100):  # no run came: it is brought back
        if fake.moves == ["unload", "reload"]:
            break
        keeper._wake.wait(0.02)
    assert fake.moves == ["unload", "reload"]


def test_what_comes_after_is_called_when_a_state_changes_and_only_then(fake, tmp_path):
    calls: list[list[str]] = []
    keeper = memory.Keeper(lambda every: calls.append([one.state for one in every]))
    for state in ("running", "running", "finished", "finished"):
        fake.every = [job(tmp_path, state)]
        keeper.look()
    assert calls == [["running"], ["finished"]]


# New LoRAs


@pytest.fixture
def made(tmp_path, models, monkeypatch) -> tuple[Job, Path, list[str]]:
    """(a finished run, its LoRA in the host's folder, what the host was told)."""
    told: list[str] = []
    monkeypatch.setattr(folders, "lora_folder", lambda: models / "Lora")
    monkeypatch.setattr(host_models, "generating", contextlib.nullcontext)
    monkeypatch.setattr(loras, "relist_loras", lambda: told.append("relist"))
    lora = models / "Lora" / "mine.safetensors"
    told_by = {RECIPE_KEY: default_recipe("sd1", "eps", num_steps=4).to_json()}
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, lora, told_by)
    run = tmp_path / "run"
    (run / "previews").mkdir(parents=True)
    Image.new("RGB", (300, 300), "red").save(run / "previews" / "step-10.png")
    return job(run, "finished", result={"lora": str(lora)}), lora, told


def test_a_new_lora_gets_a_picture_and_a_card_and_is_listed(made):
    run, lora, told = made
    finished.add_cards([run])
    finished.add_cards([run])
    assert told == ["relist"]
    card = json.loads(lora.with_suffix(".json").read_text())
    assert card["sd version"] == "SD1" and card["description"] == "4 steps, CFG 1."
    assert card["activation text"] == "" and "Euler" in card["notes"]
    with Image.open(lora.with_suffix(".png")) as picture:
        assert picture.size == (200, 300) and picture.getpixel((5, 5)) == (255, 0, 0)


def test_the_card_shows_one_image_of_the_sheet(made):
    run, lora, _ = made
    recipe = replace(default_recipe("sd1", "eps"), resolutions=((64, 64), (96, 64)))
    told_by = {RECIPE_KEY: recipe.to_json()}
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, lora, told_by)
    images = [np.full((64, 96, 3), level, np.uint8) for level in (10, 100, 200)]
    image_grid([("a cat", images), ("a dog", images)]).save(run.path / "previews" / "step-30.png")
    finished.add_cards([run])
    with Image.open(lora.with_suffix(".png")) as picture:
        assert picture.size == (96, 64)
        assert np.asarray(picture).min() == np.asarray(picture).max() == 10


def test_a_resumed_run_renews_its_picture(made):
    run, lora, told = made
    finished.add_cards([run])
    Image.new("RGB", (300, 300), "blue").save(run.path / "previews" / "step-20.png")
    lora.write_bytes(lora.read_bytes())
    os.utime(lora, ns=(1, 1))
    finished.add_cards([run])
    assert told == ["relist", "relist"]
    with Image.open(lora.with_suffix(".png")) as picture:
        assert picture.getpixel((5, 5)) == (0, 0, 255)


def test_what_the_user_made_stays(made):
    run, lora, _ = made
    lora.with_suffix(".json").write_text("mine")
    lora.with_suffix(".preview.png").write_bytes(b"mine")
    finished.add_cards([run])
    assert lora.with_suffix(".json").read_text() == "mine"
    assert not lora.with_suffix(".png").exists()


@pytest.mark.parametrize("state", ["running", "failed", "queued"])
def test_what_has_not_ended_or_lies_elsewhere_is_left_alone(made, tmp_path, state):
    run, lora, told = made
    finished.add_cards([job(run.path, state, result={"lora": str(lora)})])
    other = tmp_path / "elsewhere.safetensors"
    other.write_bytes(lora.read_bytes())
    finished.add_cards([job(run.path, "finished", result={"lora": str(other)})])
    finished.add_cards([job(run.path, "finished", result={"lora": 7})])
    assert told == [] and not lora.with_suffix(".json").exists()


def test_a_damaged_lora_costs_a_card_and_nothing_else(made):
    run, lora, told = made
    lora.write_bytes(b"nothing")
    finished.add_cards([run])
    assert told == ["relist"] and not lora.with_suffix(".json").exists()


# What the host tells the pages


def test_the_hosts_checkpoint_is_chosen_and_its_links_may_be_trained(models, files, tmp_path):
    linked = models / "Stable-diffusion" / "mine.safetensors"
    linked.symlink_to(files["sd1"])
    folders = [models / "Stable-diffusion"]
    surroundings.use(
        Surroundings(
            folders=lambda: folders,
            checkpoints=lambda: [linked],
            checkpoint=lambda: linked,
            lora_folder=lambda: models / "Lora",
        )
    )
    opened = distill_hints.opening()
    assert opened["checkpoint"]["value"] == str(linked)
    assert ("mine.safetensors (linked)", str(linked)) in opened["checkpoint"]["choices"]
    assert opened["checkpoint_note"] == "" and "SD 1.x" in opened["detected"]
    form = distill_form.initial() | {"prompts": "a cat"}
    assert form["output_folder"] == str(models / "Lora")
    request = distill_form.request_of(form)
    assert request.model.checkpoint == str(files["sd1"].resolve())
    other = tmp_path / "secret.safetensors"
    other.write_bytes(files["sd1"].read_bytes())
    refused = distill_form.submit(form | {"checkpoint": str(other)})
    assert "lies outside the folders" in refused["checkpoint_note"]


def test_a_page_that_is_built_looks_for_no_files(monkeypatch):
    looked: list[object] = []
    monkeypatch.setattr(sources, "list_models", lambda folders, kind: looked.extend(folders) or [])
    known = Surroundings(folders=lambda: looked.append("asked") or [], checkpoint=lambda: 1 / 0)
    surroundings.use(Surroundings(**{**vars(known), "listed": False}))
    opened = distill_hints.opening()
    assert opened["checkpoint"]["value"] == EMOJI
    assert set(looked) <= {sources.ASSETS}


def test_styles_and_wildcards_are_starter_prompts(monkeypatch, tmp_path):
    styles = ["{prompt}, oil painting", "", "{prompt}", "a  cat\nin ink, {prompt}", "a cat in ink",
              "#1 fan art"]  # fmt: skip
    cards = tmp_path / "dynamic" / "wildcards" / "more"
    cards.mkdir(parents=True)
    (cards / "colours.txt").write_text("# comment\nred\nblue\n")
    monkeypatch.setattr(folders, "style_prompts", lambda: styles)
    monkeypatch.setattr(folders, "extension_folders", lambda: [("dynamic", tmp_path / "dynamic")])
    around = Surroundings(
        prompt_lists=train_tab.prompt_lists, read_prompts=train_tab.read_prompt_list
    )
    surroundings.use(around)
    named = [label for label, _ in sources.starters()][-2:]
    assert named == ["Your styles", "Wildcards: more/colours (dynamic)"]
    values = [value for _, value in sources.starters()][-2:]
    answer = distill_hints.apply_starter({"starter": values[0], "evaluation_prompts": 0})
    assert answer["prompts"] == "oil painting\na cat in ink\n\\#1 fan art\n"
    answer = distill_hints.apply_starter({"starter": values[1], "evaluation_prompts": 0})
    assert answer["prompts"] == "red\nblue\n"
    with pytest.raises(PromptError):
        train_tab.read_prompt_list("Wildcards: ../../secret (dynamic)")


def test_an_empty_setting_means_the_hosts_own_folder(monkeypatch, models):
    chosen = {"dpdmd_lora_folder": " "}
    monkeypatch.setattr(page, "option", lambda name, default: chosen.get(name, default))
    monkeypatch.setattr(folders, "lora_folder", lambda: models / "Lora")
    assert settings.lora_folder() == models / "Lora"
    chosen["dpdmd_lora_folder"] = str(models)
    assert settings.lora_folder() == models


def test_settings_have_names_of_their_own_and_a_help_text(monkeypatch):
    shown: list[dict] = []
    monkeypatch.setattr(page, "add_setting", lambda section, setting: shown.append(setting))
    settings.add()
    names = [setting["name"] for setting in shown]
    assert len(set(names)) == 4 and all(name.startswith("dpdmd_") for name in names)
    assert all(setting["info"] and setting["label"] for setting in shown)
    assert [s["name"] for s in shown if s.get("private")] == ["dpdmd_lora_folder"]


# The trainer


def test_without_a_trainer_nothing_starts_and_the_page_says_what_to_do(monkeypatch):
    ready = SimpleNamespace(now=False)
    monkeypatch.setattr(readiness, "is_ready", lambda: ready.now)
    monkeypatch.setattr(readiness, "is_outdated", lambda: False)
    asked: list[str] = []
    surroundings.use(Surroundings(before_start=lambda: asked.append("free")))
    shown = trainer_form.look()
    assert shown["trainer_box"]["visible"] and "install.py" not in shown["trainer"]
    form = distill_form.initial() | {"checkpoint": EMOJI, "prompts": "a shape"}
    refused = distill_form.submit(form)
    assert "not set up yet" in refused["start_note"] and "selected" not in refused
    compared = {**compare_form.initial(), "checkpoint": EMOJI, "loras": []}
    assert "selected" not in compare_form.submit(compared)
    assert jobs.all_jobs() == [] and asked == []

    first = trainer_form.set_up({})
    again = trainer_form.set_up({})
    assert first["selected"] == again["selected"] and first["tabs"]["selected"] == "runs"
    assert "being set up now" in trainer_form.look()["trainer"]
    failed = replace(jobs.get_job(first["selected"]), state="failed", message="no network")
    with monkeypatch.context() as context:
        context.setattr(jobs, "all_jobs", lambda: [failed])
        said = trainer_form.look()["trainer"]
    assert "no network" in said and "install.py" in said
    finished_set_up = replace(failed, state="finished")
    assert "go on with the page Distil" in run_pieces.files(finished_set_up)
    runs_view.act("stop", first["selected"])
    assert "not set up" not in str(runs_view.act("start", first["selected"]))

    ready.now = True
    assert trainer_form.look() == {"trainer_box": {"visible": False}, "trainer": ""}
    made = distill_form.submit(form)
    assert asked == ["free"]
    runs_view.act("stop", made["selected"])
    ready.now = False
    assert "not set up yet" in runs_view.act("start", made["selected"])["message"]


def test_two_tabs_that_start_at_once_never_write_one_file():
    form = distill_form.initial() | {"checkpoint": EMOJI, "prompts": "a shape", "name": "same"}
    barrier = threading.Barrier(4)

    def start(_: int) -> dict:
        barrier.wait()
        return distill_form.submit(form)

    with ThreadPoolExecutor(4) as tabs:
        answers = list(tabs.map(start, range(4)))
    made = [answer["selected"] for answer in answers if "selected" in answer]
    refused = [answer for answer in answers if "selected" not in answer]
    assert len(made) == 1 and [one.id for one in jobs.all_jobs()] == made
    assert all("same (queued) writes same" in answer["output_note"] for answer in refused)
    assert len(refused) == 3
    runs_view.act("stop", made[0])
    assert "selected" in distill_form.submit(form)  # what has been stopped is in nobody's way


# The page itself


def test_the_tab_is_built_without_the_hosts_files_and_keeps_no_values(monkeypatch, models):
    monkeypatch.setattr(folders, "chosen_checkpoint", lambda: 1 / 0)
    monkeypatch.setattr(folders, "checkpoints", lambda: 1 / 0)
    monkeypatch.setattr(folders, "style_prompts", list)
    monkeypatch.setattr(folders, "extension_folders", list)
    monkeypatch.setattr(folders, "model_folders", lambda: 1 / 0)
    monkeypatch.setattr(folders, "lora_folder", lambda: models / "Lora")
    monkeypatch.setattr(page, "option", lambda name, default: default)
    [(blocks, title, name)] = train_tab.tabs()
    assert (title, name) == ("DP-DMD", "dpdmd")
    assert all(block.do_not_save_to_config for block in blocks.blocks.values())
    ids = {block.elem_id for block in blocks.blocks.values()}
    assert {"dpdmd-start", "dpdmd-set-up", "dpdmd-checkpoint", "dpdmd-runs"} <= ids
    assert surroundings.current.listed and surroundings.current.before_start


def test_labels_stand_for_values_where_gradio_knows_labels_alone():
    labels = wiring.Labels()
    choices = [("One", "a"), ("Two", "b"), ("Two", "c"), "plain"]
    shown = labels.shown({"choices": choices, "value": "c", "visible": True})
    assert shown == {
        "choices": ["One", "Two", "Two [c]", "plain"], "value": "Two [c]", "visible": True,
    }  # fmt: skip
    assert [labels.value(label) for label in shown["choices"]] == ["a", "b", "c", "plain"]
    assert labels.value(["One", "typed"]) == ["a", "typed"] and labels.value(None) is None
    assert labels.shown({"value": ["b", "new"]}) == {"value": ["Two", "new"]}
    labels.shown({"choices": [("Three", "d")]})
    assert labels.value("One") == "a"  # a page that is still open


# What the host's page and the form tell each other


def test_the_form_follows_the_hosts_checkpoint_and_clip_skip():
    around = SimpleNamespace(checkpoint=Path("/models/a.safetensors"), clip_skip=1)
    surroundings.use(
        Surroundings(checkpoint=lambda: around.checkpoint, clip_skip=lambda: around.clip_skip)
    )
    first = distill_form.hosts()
    assert first == ["/models/a.safetensors", 1]
    assert distill_form.follow({"hosts": first}) == {"hosts": first}
    around.checkpoint, around.clip_skip = Path("/models/b.safetensors"), 2
    now = ["/models/b.safetensors", 2]
    changed = {"checkpoint": now[0], "clip_skip": 2, "hosts": now}
    assert distill_form.follow({"hosts": first}) == changed
    assert distill_form.take({"hosts": now}) == changed
    around.checkpoint = None
    assert distill_form.follow({"hosts": now}) == {"hosts": [None, 2]}
    assert distill_form.initial()["clip_skip"] == 2


def test_a_finished_run_offers_its_lora_to_the_prompt(made, monkeypatch):
    run, lora, _ = made
    monkeypatch.setattr(folders, "lora_folders", lambda: [lora.parent])
    assert train_tab.prompt_tag(lora) == "<lora:mine:1>"
    assert train_tab.prompt_tag(lora.parent.parent / "mine.safetensors") == ""
    assert "data-insert" not in run_pieces.files(run)
    surroundings.use(Surroundings(prompt_tag=train_tab.prompt_tag))
    assert 'data-insert="&lt;lora:mine:1&gt;"' in run_pieces.files(run)
    of_demo = replace(default_recipe("sd1", "eps"), teacher_name="emoji-sd1")
    save_file({"x": torch.zeros(1)}, lora, {RECIPE_KEY: of_demo.to_json()})
    said = run_pieces.files(run)
    assert "data-insert" not in said and "cannot load a demo checkpoint" in said


def test_settings_of_a_demo_stay_behind_when_the_host_has_another_checkpoint(home):
    with_demo = distill_form.initial()
    assert with_demo["memory"] == "demo" and with_demo["student_lr"] == DEMO["student_lr"]
    distill_form.remember(with_demo)
    around = Surroundings(checkpoint=lambda: Path("/models/own.safetensors"))
    surroundings.use(around)
    later = distill_form.initial()
    assert later["checkpoint"] == "/models/own.safetensors" and later["memory"] == "keep"
    defaults = DistillConfig().to_dict()
    assert {name: later[name] for name in DEMO} == {name: defaults[name] for name in DEMO}
    assert later["prompts"] == "" and later["name"] == "my-4step"
