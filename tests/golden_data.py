"""A data folder as version 0.1.0 left it: every later version opens it, shows it and goes on.

    python tests/golden_data.py       wrote tests/goldens/data-folder and what belongs beside it

It is never written anew: what people have on their disks does not change either. The runs were
queued, stopped and killed by the command line; a machine that lost its power would leave the same.
What is not of that version, such as the machine's paths, stands there as {HOME}, {ASSETS}, {HOST}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  (mounts the package where this file is the program)
import dpdmd_studio
import golden_runs
import pytest
from dpdmd_studio.app.api.handler import Api
from dpdmd_studio.app.gui.forms import distill as distill_form
from dpdmd_studio.app.jobs import spawn
from dpdmd_studio.app.library import choices as sources
from dpdmd_studio.app.library import preferences
from golden_runs import FOLDER, ROOT, done, run

DATA, BESIDE = FOLDER / "data-folder", FOLDER / "data-folder-expected"
ASSETS = ROOT / "trainer" / "assets"
CHECKPOINT = ASSETS / "shapes-sd1.safetensors"
DEAD = 2**22 + 5
"""The number of a process that no Linux gives."""
TEXTS = (".json", ".jsonl", ".txt", ".html", ".lock", "")
LEFT_OUT = ("prompt-cache", "worker.log", "page-home")
PROMPTS = tuple(
    f"a {size} {{red|blue}} {shape}"
    for size in ("small", "medium", "large")
    for shape in ("circle", "square", "cross", "triangle")
)
TINY = {
    "batch_size": 2, "student_rank": 1, "fake_rank": 1, "lora_layers": "attention",
    "teacher_steps": 8, "fake_updates": 1, "warmup_steps": 1, "student_lr": 1e-3,
    "preview_every": 0, "evaluation_prompts": 0, "save_every": 2,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "finished": {
        "steps": 2, "evaluation_prompts": 2, "evaluate_every": 2, "preview_every": 2,
        "ema_decay": 0.5,
    },
    "stopped": {"steps": 400, "save_every": 100},
    "interrupted": {"steps": 5, "teacher_steps": 200, "ema_decay": 0.5, "seed": 4},
    "queued": {"steps": 2, "gradient_steps": "all", "seed": 5},
}  # fmt: skip


# Reading, with the placeholders filled in


def opened(folder: Path) -> Path:
    """A copy of the data folder with this machine's paths and a process that has ended."""
    home = folder / "home"
    for source in sorted(path for path in DATA.rglob("*") if path.is_file()):
        target = home / source.relative_to(DATA)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if source.suffix in TEXTS:
            content = filled(content.decode("utf-8"), home).encode("utf-8")
        target.write_bytes(content)
    for path in home.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return home


LONG_AGO = 1_700_000_000


def filled(text: str, home: Path) -> str:
    """A text of the data folder as it would stand on this machine."""
    values = {
        "HOME": home.resolve().as_posix(), "ASSETS": ASSETS.as_posix(), "ROOT": ROOT.as_posix(),
        "HOST": socket.gethostname(), "PID": str(DEAD),
    }  # fmt: skip
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def portable(text: str, home: Path) -> str:
    """The reverse of `filled`, but for processes."""
    values = {
        home.resolve().as_posix(): "HOME", ASSETS.as_posix(): "ASSETS", ROOT.as_posix(): "ROOT",
    }  # fmt: skip
    for value, name in values.items():
        text = text.replace(value, f"{{{name}}}")
    return text


@contextlib.contextmanager
def no_worker() -> Iterator[None]:
    """Looking at the runs starts no worker for those that wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "ensure_worker", lambda: False)
        yield


def seen(home: Path) -> dict[str, Any]:
    """All runs as the command line lists them, and each as the pages are told of it."""
    with no_worker():
        listed = {job["title"]: job for job in done("runs", "list", home=home)}
    api = Api(lambda: [ASSETS], lambda: home / "loras")
    details = {}
    with no_worker(), golden_runs.variables({"DPDMD_HOME": str(home)}):
        for title, job in listed.items():
            path = f"/dpdmd/v1/runs/{job['id']}"
            answer = api.handle("GET", path, {}, b"", {"host": "localhost"})
            assert answer.status == 200, answer.body
            details[title] = json.loads(answer.body)
    facts = json.loads(portable(json.dumps({"listed": listed, "details": details}), home))
    for job in (*facts["listed"].values(), *facts["details"].values()):
        job.pop("updated_at")  # of a queued run the time of a file
    return facts


def ids(home: Path) -> dict[str, str]:
    """Names of the runs by their titles."""
    with no_worker():
        return {job["title"]: job["id"] for job in done("runs", "list", home=home)}


def sampled(home: Path, folder: Path) -> list[Path]:
    """Pictures drawn with the data folder's LoRA."""
    words = ["sample", CHECKPOINT, "--prompt", "a large red circle", "--seeds", "0-1"]
    words += ["--lora", home / "loras" / "finished.safetensors", "--output", folder]
    return [Path(path) for path in done(*words, home=home)["pictures"]]


def inspected(home: Path) -> Any:
    """What `inspect` says of the LoRA."""
    found = done("inspect", home / "loras" / "finished.safetensors", home=home)
    return json.loads(portable(json.dumps(found), home))


def expected(name: str) -> Any:
    """One of the JSON files beside the data folder."""
    return json.loads((BESIDE / name).read_text(encoding="utf-8"))


def remembered(home: Path) -> dict[str, Any]:
    """What the pages remember, and what the Distill page fills in from it."""
    with golden_runs.variables({"DPDMD_HOME": str(home)}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "default_folders", list)
        read = preferences.load()
        assert not read.note
        facts = {
            "folders": list(read.folders), "output_folder": read.output_folder,
            "distill": dict(read.distill), "page": dict(distill_form.initial()),
        }  # fmt: skip
    return json.loads(portable(json.dumps(facts), home))


def controls(workflow: Mapping[str, Any]) -> dict[str, list[str]]:
    """Controls of each of our nodes in a workflow, in the order of their saved values."""
    found = {}
    for node in workflow["nodes"]:
        kind = dpdmd_studio.NODE_CLASS_MAPPINGS.get(node["type"])
        if kind is not None:
            found[node["type"]] = [name for name, _ in widgets(kind)]
    return found


def widgets(kind: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """(name, definition) of a node's controls in the canvas's order."""
    groups = kind.INPUT_TYPES()
    found: list[tuple[str, tuple[Any, ...]]] = []
    for name, spec in [*groups.get("required", {}).items(), *groups.get("optional", {}).items()]:
        settings = spec[1] if len(spec) > 1 else {}
        shown = isinstance(spec[0], list) or spec[0] in (
            "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO",
        )  # fmt: skip
        if shown and not settings.get("forceInput"):
            found.append((name, spec))
            if settings.get("control_after_generate", name in ("seed", "noise_seed")):
                found.append(("control_after_generate", (["randomize"], {})))
    return found


# Writing


def command(home: Path, *words: object) -> Any:
    """A command in a process of its own, as a person gives it; what it prints as JSON."""
    place = {"DPDMD_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT), *map(str, words), "--json"]
    ended = subprocess.run(line, env=os.environ | place, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def queue(home: Path, title: str) -> Path:
    """The folder of a run that was queued by the command line."""
    words = ["distill", CHECKPOINT, "--prompts", home.parent / "prompts.txt", "--queue"]
    words += ["--output", home / "loras" / f"{title}.safetensors"]
    settings = golden_runs.options(TINY | RUNS[title])
    return Path(command(home, *words, *settings)["path"])


def until(true: Callable[[], bool]) -> None:
    """Wait."""
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def updates_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def state(folder: Path) -> str:
    home = folder.parents[1]
    return next(job["state"] for job in command(home, "runs") if job["id"] == folder.name)


def write() -> None:
    """Write the data folder, then what this version makes of it."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve() / "home"
        (home / "loras").mkdir(parents=True)
        (home.parent / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        with golden_runs.variables({"DPDMD_HOME": str(home), "OMP_NUM_THREADS": "1"}):
            _remember(home)
            finished = queue(home, "finished")
            until(lambda: state(finished) == "finished")
            stopped = queue(home, "stopped")
            until(lambda: updates_done(stopped) >= 3)
            command(home, "runs", "stop", stopped.name)
            until(lambda: state(stopped) == "stopped")
            command(home, "settings", "export", finished, "--output", home / "shared.json")
            (home / "workflows").mkdir()
            for path in (ROOT / "example_workflows").glob("*.json"):
                shutil.copy(path, home / "workflows")
            interrupted = queue(home, "interrupted")
            queued = queue(home, "queued")
            until(lambda: updates_done(interrupted) >= 3)
            owners = [home / "worker.lock", interrupted / "child.json"]
            for pid in [json.loads(owner.read_text())["pid"] for owner in owners]:
                os.kill(pid, signal.SIGKILL)  # any command from here on would start a worker
            time.sleep(1)
            assert (queued / "queued").exists() and not (queued / "taken.json").exists()
        _keep(home)
    BESIDE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        _expect(Path(temporary).resolve())


def _remember(home: Path) -> None:
    """The Distill page filled in and sent off, and the run that came of it thrown away."""
    (home / "models").mkdir()
    (home / "models" / "readme.txt").write_text("Models lie here.\n")
    with no_worker(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "default_folders", list)
        sources.add_folder(str(home / "models"))
        values = distill_form.initial() | {"name": "from the page", "steps": 3}
        job = distill_form.submit(values)["selected"]
    command(home, "runs", "delete", job)


def _keep(home: Path) -> None:
    """Copy the data folder with placeholders for what is this machine's."""
    shutil.rmtree(DATA, ignore_errors=True)
    for source in sorted(path for path in home.rglob("*") if path.is_file()):
        inside = source.relative_to(home)
        if inside.parts[0] in LEFT_OUT or source.name == ".reserve":
            continue
        target = DATA / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if source.suffix in TEXTS:
            text = portable(content.decode("utf-8"), home)
            locks = ("lock.json", "child.json", "taken.json", "worker.lock", "cpu.json")
            if source.name in locks:
                facts = json.loads(text) | {"host": "{HOST}"}
                pid = str(facts["pid"])
                text = json.dumps(facts).replace(f'"pid": {pid}', '"pid": {PID}')
            content = text.replace(str(home.parent), "{TEMPORARY}").encode("utf-8")
        target.write_bytes(content)


def _expect(folder: Path) -> None:
    """What this version makes of the data folder."""
    home = opened(folder)
    facts = {
        "made_by": golden_runs.fingerprint(),
        "seen": seen(home),
        "inspect": inspected(home),
        "remembered": remembered(home),
        "settings": json.loads((home / "shared.json").read_text())["config"],
        "controls": {
            path.name: controls(json.loads(path.read_text(encoding="utf-8")))
            for path in sorted((DATA / "workflows").glob("*.json"))
        },
        "metrics": {},
    }  # fmt: skip
    for picture in sampled(home, folder / "drawn"):
        shutil.copy(picture, BESIDE)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    for title in ("interrupted", "queued"):  # each without a pause
        lora, whole = BESIDE / f"{title}.safetensors", folder / title
        words = ["distill", CHECKPOINT, "--prompts", prompts, "--output", lora, "--overwrite"]
        words += ["--run", whole, *golden_runs.options(TINY | RUNS[title])]
        done(*words, home=home)
        facts["metrics"][title] = golden_runs.lines(whole / "metrics.jsonl")
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    (BESIDE / "facts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
    assert run("--version").code == 0
