"""The GUI as a server: who may talk to it, what it sends, and what its process loads."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dpdmd_studio.app.api.exchange import host_name
from dpdmd_studio.app.gui.forms import distill as distill_form
from dpdmd_studio.app.gui.forms.controls import advanced
from dpdmd_studio.app.gui.guard import COOKIE, MAX_BODY_BYTES, Guard, is_local
from dpdmd_studio.app.gui.pages import distill as distill_page
from dpdmd_studio.app.gui.widgets import html
from dpdmd_studio.app.jobs import get_job, rename, spawn
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.cli import main
from dpdmd_studio.core.errors import SettingsError

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "</script><script>alert(1)</script>"
TOKEN = "a-token-of-twenty-four-letters"


def ask(application, path: str = "/", *, method: str = "GET", kind: str = "http", **headers: str):
    """(status, headers, body) that an ASGI application answers."""
    path, _, query = path.partition("?")
    named = {"host": "localhost:7868", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": kind, "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": [(k.encode(), v.encode()) for k, v in named.items()],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 7868),
    }  # fmt: skip
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    start = next(m for m in sent if "status" in m or m["type"] == "websocket.close")
    found = {name.decode(): value.decode() for name, value in start.get("headers", ())}
    body = b"".join(message.get("body", b"") for message in sent)
    return start.get("status", start.get("code")), found, body.decode()


async def inner(scope, receive, send) -> None:
    """An application that says yes to everything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


# The guard


@pytest.mark.parametrize("host", ["localhost:7868", "127.0.0.1", "[::1]:7868", "LOCALHOST"])
def test_this_computer_is_let_in(host):
    status, headers, body = ask(Guard(inner, None), host=host)
    assert (status, body) == (200, "inside")
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7868", "localhost.evil.example", "", "[::1", "127.0.0.2.x"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_names_that_resolve_here_are_refused(host, method):
    status, _, body = ask(Guard(inner, None), host=host, method=method)
    assert status == 421 and "inside" not in body


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1234"])
def test_posts_from_pages_of_others_are_refused(origin):
    assert ask(Guard(inner, None), method="POST", origin=origin)[0] == 403
    assert ask(Guard(inner, None), kind="websocket", origin=origin)[0] == 1008
    assert ask(Guard(inner, None), method="POST", sec_fetch_site="cross-site")[0] == 403
    assert ask(Guard(inner, None), method="POST", origin="http://localhost:7868")[0] == 200


def test_uploads_have_a_limit():
    guard = Guard(inner, None)
    assert ask(guard, method="POST", content_length=str(MAX_BODY_BYTES + 1))[0] == 413
    assert ask(guard, method="POST", content_length="-1")[0] == 413
    assert ask(guard, method="POST", content_length=str(MAX_BODY_BYTES))[0] == 200


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address():
    guard = Guard(inner, TOKEN, any_host=True)
    status, _, body = ask(guard, host="my-server:7868")
    assert status == 401 and "?token=" in body and TOKEN not in body
    assert ask(guard, "/?token=wrong", host="my-server")[0] == 401
    assert ask(guard, "/gradio_api/upload", method="POST", host="my-server")[0] == 401
    status, headers, _ = ask(guard, f"/?token={TOKEN}&__theme=dark", host="my-server")
    assert status == 303 and headers["location"] == "/?__theme=dark"
    assert headers["set-cookie"] == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Lax"
    cookie = headers["set-cookie"].split(";")[0]
    assert ask(guard, "/config", host="my-server", cookie=cookie)[0] == 200
    assert ask(guard, "/config", host="my-server", cookie=f"{COOKIE}=wrong")[0] == 401
    assert ask(guard, "/config", host="my-server", cookie="\x01;;=")[0] == 401


def test_which_addresses_need_no_token():
    assert [is_local(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_local(host) for host in ("0.0.0.0", "::", "192.168.0.2", "my-server", ""))
    assert host_name("[::1]:80") == "::1" and host_name("a:b:c") == "a"


# The server


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory):
    """The whole application over a data folder with one job."""
    from dpdmd_studio.app.gui.app import build_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPDMD_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(spawn, "ensure_worker", lambda: False)
        patch.setattr(sources, "default_folders", list)  # whatever lies beside the checkout
        job = get_job(distill_form.submit(distill_form.initial())["selected"])
        rename(job.id, HOSTILE)
        lora = job.path.parents[1] / "loras" / "made.safetensors"
        lora.write_bytes(b"")
        (job.path / "result.json").write_text(json.dumps({"lora": str(lora)}), encoding="utf-8")
        yield build_app(), job


def test_the_page_asks_nothing_of_other_servers(app):
    from dpdmd_studio.app.gui.app import SCRIPT, STYLES

    status, headers, body = ask(app[0])
    assert status == 200 and "DP-DMD Studio" in body
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?([^\"' >]+)", body)
    assert loaded and not [address for address in loaded if address.startswith(("http", "//"))]
    assert "default-src 'self'" in headers["content-security-policy"]
    own = [path.read_text(encoding="utf-8") for path in (*STYLES, SCRIPT)]
    assert len(own) == 3 and not any("//" in text.replace("// ", "") for text in own)
    assert ask(app[0], host="evil.example")[0] == 421


def config_of(body: str) -> dict:
    """What gradio tells the browser of the page."""
    found = re.search(r"window\.gradio_config = (\{.*?\});", body, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_hostile_names_are_no_markup_in_the_page_as_it_is_sent(app):
    _, _, body = ask(app[0])
    choices = [part["props"].get("choices") or [] for part in config_of(body)["components"]]
    labels = [choice[0] for several in choices for choice in several]
    assert f"{HOSTILE} (made.safetensors)" in labels  # it is there, as a text of a dropdown
    assert "alert(1)</script>" not in body


def test_components_have_labels_and_the_pages_are_all_there(app):
    _, _, body = ask(app[0])
    config = config_of(body)
    kinds = ("textbox", "number", "dropdown", "checkbox", "slider", "file")
    fields = [part["props"] for part in config["components"] if part["type"] in kinds]
    unlabelled = [p for p in fields if not p.get("label") and p.get("elem_id") != "dpdmd-selected"]
    assert len(fields) > 60 and unlabelled == []
    tabs = [p["props"]["label"] for p in config["components"] if p["type"] == "tabitem"]
    assert tabs == ["Distil", *advanced(), "Runs", "Compare", "Share"]
    ids = [p["props"].get("elem_id") for p in config["components"] if p["props"].get("elem_id")]
    assert len(ids) == len(set(ids))


def test_a_change_takes_back_what_was_said_of_a_start(app):
    """The pointer to a note that is mended says nothing any more."""
    _, _, body = ask(app[0])
    config = config_of(body)
    notes = {part["id"] for part in config["components"] if part["type"] == "html"}
    (prompts,) = [part["id"] for part in config["components"]
                  if part["props"].get("label") == "Your prompts"]  # fmt: skip
    (typed,) = [event for event in config["dependencies"] if [prompts, "input"] in event["targets"]]
    assert len(notes & set(typed["outputs"])) == 4  # count, examples, its own note, the start's
    answer = distill_page._after_a_change(lambda values: {"prompts_note": values["prompts"]})
    assert answer({"prompts": "x"}) == {"start_note": "", "prompts_note": "x"}


def test_reports_are_served_by_job_alone_and_can_run_nothing(app):
    application, job = app
    folder = job.path / "report"
    assert "no report yet" in ask(application, f"/studio/report/{job.id}")[2]
    folder.mkdir()
    (folder / "report.html").write_text("<p>the report</p>", encoding="utf-8")
    status, headers, body = ask(application, f"/studio/report/{job.id}")
    assert (status, body) == (200, "<p>the report</p>")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "sandbox" in headers["content-security-policy"]
    for id in ("..", "<b>x</b>", "none"):
        status, _, body = ask(application, f"/studio/report/{id}")
        assert status == 404 and "<b>" not in body


def test_files_of_the_computer_are_not_served(app):
    for place in ("/etc/passwd", str(ROOT / "README.md"), str(app[1].path / "settings.json")):
        for route in ("/gradio_api/file=", "/file="):
            assert ask(app[0], f"{route}{place}")[0] in (403, 404), place


# The command


def test_a_port_that_is_taken_and_a_short_token_are_named(home):
    from dpdmd_studio.app.gui.app import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match="cannot be used"):
            serve(port=taken.getsockname()[1], open_browser=False)
    with pytest.raises(SettingsError, match="5 characters"):
        serve(token="short", open_browser=False)
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1, port 7868 and those after"):
        serve(listen="192.0.2.1", open_browser=False)


def test_the_command_line_says_what_gui_does(capsys):
    with pytest.raises(SystemExit):
        main(["gui", "--help"])
    assert "--listen HOST" in capsys.readouterr().out


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest, json
from dpdmd_studio.app.jobs import spawn
spawn.ensure_worker = lambda: False
from dpdmd_studio.app.gui.app import build_app
from dpdmd_studio.app.gui.forms import compare as compare_form, distill as distill_form
from dpdmd_studio.app.gui.forms import distill_hints, share as share_form
from dpdmd_studio.app.gui.widgets import runs_view
from dpdmd_studio.app.library import choices as sources
sources.default_folders = list
build_app()
form = distill_form.initial()
distill_hints.opening()
job = distill_form.submit(form)["selected"]
runs_view.refresh(job, {})
compare_form.submit(compare_form.initial())
share_form.submit(share_form.FORM)
heavy = ("torch", "diffusers", "transformers", "peft", "accelerate", "tokenizers")
status = open("/proc/self/status").read()
most = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"heavy": [name for name in heavy if name in sys.modules], "bytes": most,
                  "job": job}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_loads_neither_torch_nor_the_engine_and_stays_small(home):
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(ROOT / "tests")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["heavy"] == [] and facts["job"]
    assert facts["bytes"] < 400e6


def test_pictures_far_too_large_are_left_out(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 100)
    assert html.encoded_image(path).startswith("eHh4")
    monkeypatch.setattr(html, "MAX_IMAGE_BYTES", 99)
    assert html.encoded_image(path) == ""
    assert html.encoded_image(tmp_path / "none.png") == ""
