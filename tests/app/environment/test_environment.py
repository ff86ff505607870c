"""Torch of the worker's environment - kept, borrowed or installed - and the way into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dpdmd_studio.app import environment as env
from dpdmd_studio.app.environment import (
    boot,
    handover,
    installation,
    packages,
    readiness,
    torch_source,
)


def plant_torch(folder: Path, version: str) -> Path:
    """A folder of packages with a stand-in for torch, triton and a package of the host's own."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")
    metadata = folder / f"torch-{version}.dist-info"
    metadata.mkdir()
    about = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    (metadata / "METADATA").write_text(about, encoding="utf-8")
    (folder / "triton").mkdir()
    (folder / "triton" / "__init__.py").write_text("OWNER = 'host'\n", encoding="utf-8")
    (folder / "host_only.py").write_text("", encoding="utf-8")
    return folder


@pytest.fixture
def environment(tmp_path) -> env.Environment:
    """A folder environment whose interpreter is the one that runs the tests."""
    place = env.Environment(tmp_path / "env")
    place.packages.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place.record(kind="folder", python=sys.executable, version=version)
    return place


def options(*words: str):
    return installation.split(list(words))[0]


def finished(environment: env.Environment) -> None:
    version = (sys.version_info.major, sys.version_info.minor)
    environment.record(
        ready="yes",
        pins=env.requirement_set(version).digest,
    )


# -- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cu130", (2, 13)), ("2.6.0", (2, 6)), ("2.10.0a0+git", (2, 10)), ("odd", (0, 0))],
)
def test_versions_compare_as_numbers(version, expected):
    assert env.release(version) == expected


def test_only_torch_and_what_it_imports_is_borrowed(tmp_path, environment):
    host = plant_torch(tmp_path / "host", "2.9.0")
    folders = {"torch": str(host), "triton": str(host)}
    torch_source.lend(torch_source.FoundTorch("2.9.0", host), folders, environment.packages)
    (environment.packages / "triton.py").write_text("OWNER = 'worker'\n", encoding="utf-8")
    script = tmp_path / "look.py"
    script.write_text(
        "import importlib.metadata, importlib.util, json, torch, triton\n"
        "print(json.dumps([torch.__file__, importlib.metadata.version('torch'), triton.OWNER,\n"
        "                  importlib.util.find_spec('host_only') is None]))\n",
        encoding="utf-8",
    )
    process = subprocess.run(
        environment.command(str(script)), capture_output=True, text=True, check=True
    )
    expected = [str(host / "torch" / "__init__.py"), "2.9.0", "worker", True]
    assert json.loads(process.stdout) == expected


def test_borrowing_is_undone_without_touching_a_real_torch(tmp_path, environment):
    host = plant_torch(tmp_path / "host", "2.9.0")
    before = sorted(environment.packages.iterdir())
    found = torch_source.FoundTorch("2.9.0", host)
    torch_source.lend(found, {"torch": str(host)}, environment.packages)
    assert torch_source.torch_in(environment.packages) is None
    torch_source.take_back(environment.packages)
    assert sorted(environment.packages.iterdir()) == before
    torch_source.take_back(host)
    assert torch_source.torch_in(host) == found


def test_a_changed_host_torch_is_noticed(tmp_path):
    host = plant_torch(tmp_path / "host", "2.9.0")
    found = torch_source.FoundTorch("2.9.0", host)
    assert found.still_there()
    (host / "torch-2.9.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0\n", encoding="utf-8"
    )
    assert not found.still_there()


@pytest.fixture
def decisions(monkeypatch, environment) -> list[str]:
    """What provide_torch does, written down in place of doing it."""
    done: list[str] = []
    monkeypatch.setattr(
        installation, "install_torch", lambda _, spec, index: done.append(f"install {spec} {index}")
    )
    monkeypatch.setattr(torch_source, "lend", lambda torch, *_: done.append(f"lend {torch}"))
    monkeypatch.setattr(packages, "torch_facts", lambda _: {"version": "x"})
    monkeypatch.setattr(torch_source, "torch_of_this_python", lambda: None)
    return done


def test_torch_in_the_environment_is_kept(environment, decisions):
    plant_torch(environment.packages, "2.6.0")
    installation.provide_torch(environment, options())
    assert decisions == []


def test_torch_below_the_floor_is_replaced(environment, decisions):
    plant_torch(environment.packages, "2.5.1")
    installation.provide_torch(environment, options())
    assert decisions == ["install torch==2.13.0 None"]


@pytest.mark.parametrize(("version", "lent"), [("2.6.0+cu124", True), ("2.1.2", False)])
def test_the_hosts_torch_is_borrowed_from_the_floor_on(
    environment, decisions, monkeypatch, tmp_path, version, lent
):
    found = torch_source.FoundTorch(version, plant_torch(tmp_path / "host", version))
    monkeypatch.setattr(torch_source, "torch_of_this_python", lambda: found)
    installation.provide_torch(environment, options())
    assert decisions == ([f"lend {found}"] if lent else ["install torch==2.13.0 None"])


def test_the_torch_of_another_python_version_is_not_borrowed(
    environment, decisions, monkeypatch, tmp_path
):
    found = torch_source.FoundTorch("2.9.0", plant_torch(tmp_path / "host", "2.9.0"))
    monkeypatch.setattr(torch_source, "torch_of_this_python", lambda: found)
    environment.record(version="3.10" if sys.version_info[:2] != (3, 10) else "3.11")
    installation.provide_torch(environment, options())
    assert decisions == ["install torch==2.13.0 None"]


def test_what_the_user_asks_for_wins(environment, decisions):
    plant_torch(environment.packages, "2.9.0")
    wish = options("--torch", "torch==2.8.0", "--torch-index", "https://example.org/cpu")
    installation.provide_torch(environment, wish)
    assert decisions == ["install torch==2.8.0 https://example.org/cpu"]
    environment.record(**{"torch wish": installation.torch_wish(wish)})
    installation.provide_torch(environment, wish)
    assert len(decisions) == 1


def test_an_idle_gpu_is_said_clearly(environment, monkeypatch, capsys):
    facts = {"version": "2.13.0+cpu", "build": "CPU", "cuda": "", "device": ""}
    monkeypatch.setattr(packages, "torch_facts", lambda _: facts)
    monkeypatch.setattr(torch_source, "gpu_seen", lambda: "NVIDIA")
    installation.check_torch(environment)
    message = capsys.readouterr().out
    assert "NVIDIA GPU" in message
    assert "--torch-index URL" in message


@pytest.mark.parametrize(
    ("build", "cuda", "version", "expected"),
    [
        ("CPU", "", "2.13.0+cpu", None),
        ("ROCm", "", "2.13.0+rocm7", None),
        ("CUDA", "13.0", "2.13.0+cu130", None),
        ("CUDA", "12.8", "2.13.0+cu128", "xformers==0.0.35"),
        ("CUDA", "12.8", "2.8.0+cu128", "xformers==0.0.32.post2"),
        ("CUDA", "12.4", "2.6.0+cu124", None),
    ],
)
def test_xformers_comes_only_with_the_cuda_it_is_built_for(
    environment, monkeypatch, build, cuda, version, expected
):
    seen: list[str] = []
    monkeypatch.setattr(packages, "pip_install", lambda _, *words, **named: seen.append(words[-1]))
    monkeypatch.setattr(installation.platform, "machine", lambda: "x86_64")
    facts = {"build": build, "cuda": cuda, "version": version}
    installation.add_xformers(environment, facts)
    assert seen == ([expected] if expected else [])


def test_a_borrowed_torch_that_left_sets_up_again(environment, tmp_path):
    finished(environment)
    host = plant_torch(tmp_path / "host", "2.9.0")
    # what torch calls itself may say more than its package does
    environment.record(**{"torch from": str(host), "torch lent": "2.9.0", "torch": "2.9.0+cu130"})
    assert installation.up_to_date(environment, options())
    (host / "torch" / "__init__.py").unlink()
    assert not installation.up_to_date(environment, options())


# -- from any interpreter into the environment ---------------------------------------------------


def test_without_an_environment_the_command_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readiness, "ENGINE_LIBRARIES", {"no_such_library": (1, 0)})
    assert handover.hand_over(["distill"], env.Environment(tmp_path / "none")) == 2
    message = capsys.readouterr().err
    assert "no_such_library" in message
    assert "install.py" in message


def test_an_interpreter_that_has_everything_is_used_as_it_is(tmp_path, monkeypatch):
    none = env.Environment(tmp_path / "none")
    for libraries in ({"json": (9, 9)}, {"torch": (2, 0)}):  # the first is no distribution
        monkeypatch.setattr(readiness, "ENGINE_LIBRARIES", libraries)
        assert readiness.is_ready(none)
        assert handover.hand_over(["distill"], none) is None


def test_an_interpreter_whose_libraries_are_too_old_asks_for_the_set_up(
    tmp_path, monkeypatch, capsys
):
    """Forge and Forge Neo bring older diffusers, transformers and peft of their own."""
    none = env.Environment(tmp_path / "none")
    monkeypatch.setattr(readiness, "ENGINE_LIBRARIES", {"torch": (99, 0)})
    assert not readiness.is_ready(none)
    assert handover.hand_over(["distill"], none) == 2
    message = capsys.readouterr().err
    assert "lacks torch 99.0 or newer (it has " in message and "install.py" in message


def test_another_interpreter_hands_over_and_the_right_one_does_not(environment, monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(handover, "run_elsewhere", lambda _, words: seen.append(words) or 7)
    monkeypatch.setattr(handover, "enter", lambda packages: seen.append([str(packages)]))
    finished(environment)
    assert handover.hand_over(["distill"], environment) is None
    other = Path(sys.executable).with_name("some-other-python")
    monkeypatch.setattr(handover.sys, "executable", str(other))
    assert handover.hand_over(["distill"], environment) == 7
    assert seen == [[str(environment.packages)], ["distill"]]


def test_the_folder_replaces_the_hosts_packages(tmp_path, monkeypatch):
    stdlib = str(tmp_path / "lib")
    monkeypatch.setattr(sys, "path", [stdlib, str(tmp_path / "host" / "site-packages")])
    boot.enter(tmp_path / "packages")
    assert sys.path == [str(tmp_path / "packages"), stdlib]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--help"], False),
        (["distill", "--help"], False),
        (["inspect", "x.safetensors"], False),
        (["runs"], False),
        (["distill", "x.safetensors"], True),
    ],
)
def test_only_commands_that_compute_need_the_worker(words, expected):
    from dpdmd_studio import __main__ as program

    assert program.needs_worker(words) is expected


@pytest.mark.parametrize("word", ["runs", "work"])
def test_the_queue_needs_the_worker_where_the_library_of_locks_is_missing(word, monkeypatch):
    from dpdmd_studio import __main__ as program

    with monkeypatch.context() as patch:
        patch.setattr(program.importlib.util, "find_spec", lambda name: None)
        assert program.needs_worker([word])


@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_waiting_threads_sleep_soon_unless_somebody_says_how_they_wait(said):
    from dpdmd_studio import __main__ as program

    variables = dict(said)
    program.share_cores(variables)
    assert variables == (said or {"GOMP_SPINCOUNT": program.SPINS})


def test_the_command_line_says_it_before_any_library_is_loaded():
    script = (
        "import os, runpy, sys\n"
        "sys.argv = ['it', 'inspect', 'nowhere.safetensors']\n"
        "try:\n    runpy.run_path(os.environ['PROGRAM'], run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    print(ended.code, os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"PROGRAM": str(env.ROOT / "__main__.py")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2", "1000", "False"], done.stderr
