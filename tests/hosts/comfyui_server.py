"""A real ComfyUI server with this checkout among its custom nodes, for tests.

COMFYUI_DIR names the ComfyUI and COMFYUI_PYTHON its interpreter, where that is not the folder's own
`.venv` or `venv`. Everything the server writes goes into a folder of the test.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("COMFYUI_DIR")
LISTENER = Path(__file__).with_name("comfyui_listener.py")
NEIGHBOUR = Path(__file__).with_name("comfyui_neighbour.py")
PACK = "comfyui-dp.dmd-main"
needs_comfyui = pytest.mark.skipif(not FOLDER, reason="COMFYUI_DIR names no ComfyUI")
BOOT_SECONDS, PROMPT_SECONDS = 180.0, 300.0
Graph = dict[str, dict[str, Any]]


def host_python() -> str:
    """The interpreter that the ComfyUI runs with."""
    named = os.environ.get("COMFYUI_PYTHON")
    places = [Path(str(FOLDER)) / venv / "bin" / "python" for venv in (".venv", "venv")]
    found = named or next((str(place) for place in places if place.exists()), None)
    if found is None:
        pytest.skip("COMFYUI_PYTHON names no Python, and COMFYUI_DIR holds no venv")
    return found


def clone_checkout(target: Path) -> None:
    """The checkout as a user would clone it, with this one's training environment."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".venv").symlink_to(ROOT / ".venv")


class ComfyUI:
    """A server, and what a browser would do with it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.pack = base / "custom_nodes" / PACK
        self.home = base / "dpdmd-home"
        self.log = base / "server.log"
        for name in ("checkpoints", "loras"):
            (base / "models" / name).mkdir(parents=True)
        clone_checkout(self.pack)
        neighbour = base / "custom_nodes" / "a-neighbour"
        (neighbour / "trainer").mkdir(parents=True)
        (neighbour / "trainer" / "__init__.py").write_text("WHOSE = 'the neighbour'\n")
        shutil.copy2(NEIGHBOUR, neighbour / "__init__.py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds_to_boot, self.said_at_boot = 0.0, ""

    # The process

    def start(self, *arguments: str) -> None:
        """Boot the server and wait until it answers."""
        port = self.address.rpartition(":")[2]
        command = [host_python(), "main.py", "--cpu", "--port", port, "--base-directory"]
        command += [str(self.base), "--disable-api-nodes", *arguments]
        variables = os.environ | {"DPDMD_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=FOLDER, env=variables, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        while not self.answers():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() - began < BOOT_SECONDS, self.said()[-3000:]
            time.sleep(0.2)
        self.seconds_to_boot, self.said_at_boot = time.monotonic() - began, self.said()

    def stop(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def said(self) -> str:
        """The server's log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            return "system" in self.get("/system_stats")
        except (OSError, ValueError):
            return False

    # Its routes

    def request(self, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and content of one request; with a body it is a POST of JSON."""
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, headers=kind | headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        status, content = self.request(path)
        assert status == 200, (path, status, content[:500])
        return json.loads(content)

    def post(self, path: str, body: object) -> Any:
        """The JSON that a POST is answered with; None for no content."""
        status, content = self.request(path, body)
        assert status == 200, (path, status, content[:3000])
        return json.loads(content) if content.strip() else None

    # Prompts

    def queue(self, graph: Graph, client: str = "test", **extra: object) -> str:
        """Queue a graph as the browser does; every node of it must be valid. Its id."""
        body = {"prompt": graph, "client_id": client, "extra_data": dict(extra)}
        answer = self.post("/prompt", body)
        assert not answer["node_errors"], answer["node_errors"]
        return answer["prompt_id"]

    def wait(self, prompt: str, seconds: float = PROMPT_SECONDS) -> dict[str, Any]:
        """The history of a prompt, when it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.get(f"/history/{prompt}").get(prompt)
            if found is not None:
                return found
            assert self.process is not None and self.process.poll() is None, self.said()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"no end after {seconds:.0f} s: {self.said()[-3000:]}")

    def run(self, graph: Graph, seconds: float = PROMPT_SECONDS) -> dict[str, Any]:
        """What the nodes of a graph put out for the browser; the graph must succeed."""
        history = self.wait(self.queue(graph), seconds)
        assert history["status"]["status_str"] == "success", history["status"]
        return history["outputs"]

    def failure(self, graph: Graph) -> str:
        """The message with which a graph fails, or with which it is not queued at all."""
        body = {"prompt": graph, "client_id": "test", "extra_data": {}}
        status, content = self.request("/prompt", body)
        answer = json.loads(content)
        if status == 400:
            found = [e for node in answer["node_errors"].values() for e in node["errors"]]
            assert len(found) == 1, found  # once, and not for every input
            return found[0]["details"]
        assert status == 200 and not answer["node_errors"], answer
        return error_of(self.wait(answer["prompt_id"]))

    def listen(self, client: str = "test") -> Listener:
        """Everything that a browser of that name is told from now on."""
        return Listener(self.address, client)


def error_of(history: Mapping[str, Any]) -> str:
    """The error message in the history of a prompt that failed."""
    status = history["status"]
    assert status["status_str"] == "error", status
    found = [data for name, data in status["messages"] if name == "execution_error"]
    return found[0]["exception_message"] if found else ""


class Listener:
    """Events of a server, collected in the background."""

    def __init__(self, address: str, client: str) -> None:
        self.events: list[dict[str, Any]] = []
        command = [host_python(), str(LISTENER), address, client]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._collect, daemon=True).start()
        self.until(lambda event: event["type"] == "listening", 60)

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict:
        """The first event that is wanted, when it is there."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for event in list(self.events):
                if wanted(event):
                    return event
            time.sleep(0.05)
        kinds = [event["type"] for event in self.events][-40:]
        raise AssertionError(f"not seen within {seconds:.0f} s; seen: {kinds}")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type so far."""
        return [event for event in list(self.events) if event["type"] == kind]

    def close(self) -> None:
        """Hang up."""
        self._process.terminate()
        self._process.wait()


def command(*arguments: object) -> None:
    """One of our own commands, which has to succeed."""
    words = [sys.executable, str(ROOT), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
