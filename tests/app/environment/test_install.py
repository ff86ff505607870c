"""install.py and the worker's environment: what is decided, without installing anything."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from dpdmd_studio.app import environment as env
from dpdmd_studio.app.environment import installation, packages

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# -- where install.py stands ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "host"),
    [
        ("webui/extensions/dp-dmd", "WebUI"),
        ("ComfyUI/custom_nodes/dp-dmd", "ComfyUI"),
        ("projects/dp-dmd", ""),
        ("extensions-of-mine/dp-dmd", ""),
    ],
)
def test_the_host_is_known_by_the_folder_around(install, place, host):
    assert install.host_around(os.path.join("/", *place.split("/")), {}) == host


def test_the_host_is_known_by_the_path_it_sets(install, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").touch()
    (tmp_path / "launch.py").touch()
    variables = {"PYTHONPATH": os.pathsep.join(["", "/nowhere", str(tmp_path)])}
    assert install.host_around("/projects/dp-dmd", variables) == "WebUI"
    assert install.host_around("/projects/dp-dmd", {"PYTHONPATH": str(tmp_path / "modules")}) == ""


def run_install(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "install.py").write_bytes((ROOT / "install.py").read_bytes())
    return subprocess.run(
        [sys.executable, "install.py", *arguments], cwd=folder, capture_output=True, text=True
    )


def test_a_host_gets_one_line_until_the_environment_exists_and_then_none(tmp_path):
    checkout = tmp_path / "custom_nodes" / "dp-dmd"
    checkout.mkdir(parents=True)
    first = run_install(checkout)
    assert (first.returncode, first.stderr, first.stdout.count("\n")) == (0, "", 1)
    assert str(checkout / "install.py") in first.stdout
    assert sorted(path.name for path in checkout.iterdir()) == ["install.py"]
    env.Environment(checkout / ".venv").record(ready="yes")
    second = run_install(checkout)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_an_old_python_is_told_which_ones_serve(install, monkeypatch, capsys):
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 18))
    assert install.main(["setup"]) == 1
    message = capsys.readouterr().err
    assert "Python 3.9" in message
    assert "3.10 to 3.13" in message


# -- the command line ----------------------------------------------------------------------------


def test_options_may_stand_on_either_side_of_the_command():
    for words in (["--torch", "torch==2.7.0", "demo"], ["demo", "--torch", "torch==2.7.0"]):
        options, command, rest = installation.split(words)
        assert (options.torch, command, rest) == ("torch==2.7.0", "demo", [])


def test_arguments_after_a_command_are_passed_on():
    options, command, rest = installation.split(["test", "-k", "oracle", "-x", "--help"])
    assert (command, rest, options.with_tests) == ("test", ["-k", "oracle", "-x", "--help"], True)
    assert installation.split(["demo", "--steps", "9"])[2] == ["--steps", "9"]


def test_an_unknown_option_is_refused_before_anything_happens(capsys):
    with pytest.raises(SystemExit) as caught:
        installation.split(["--trch", "torch==2.7.0"])
    assert caught.value.code == 2
    assert "--trch" in capsys.readouterr().err


def test_the_demo_hands_its_arguments_on(monkeypatch):
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(installation, "run_inside", lambda _, *words: seen.append(words) or 0)
    installation.run_demo([])
    installation.run_demo(["--output=elsewhere"])
    assert seen[0][1:] == ("demo",)
    assert seen[1][1:] == ("demo", "--output=elsewhere")


# -- pinned sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ((3, 10), "requirements-python310.txt"),
        ((3, 11), "requirements-current.txt"),
        ((3, 13), "requirements-current.txt"),
        ((3, 14), "requirements-current.txt"),
    ],
)
def test_every_python_has_its_set(version, file):
    assert env.requirement_set(version).file.name == file


@pytest.mark.parametrize("pins", [*env.SETS], ids=lambda pins: pins.file.stem)
def test_sets_are_pinned_and_complete(pins):
    lines = [
        line.split(";")[0].strip()
        for line in pins.file.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert all(line.count("==") == 1 for line in lines)
    assert pins.torch in lines
    names = {line.split("==")[0] for line in lines}
    assert {"diffusers", "transformers", "peft", "accelerate", "safetensors"} <= names


# -- doing nothing twice -------------------------------------------------------------------------


def finished(environment: env.Environment) -> None:
    version = (sys.version_info.major, sys.version_info.minor)
    environment.record(
        ready="yes",
        pins=env.requirement_set(version).digest,
    )


def test_a_finished_set_up_is_not_repeated(environment):
    assert not installation.up_to_date(environment, options())
    finished(environment)
    assert installation.up_to_date(environment, options())


@pytest.mark.parametrize("key", ["pins", "ready", "version"])
def test_a_change_of_the_project_sets_up_again(environment, key):
    finished(environment)
    environment.record(**{key: ""})
    assert not installation.up_to_date(environment, options())


def test_tests_and_another_torch_are_asked_for_on_top(environment):
    finished(environment)
    assert not installation.up_to_date(environment, options("--with-tests"))
    assert not installation.up_to_date(environment, options("--with-8bit"))
    environment.record(**{"8bit": env.digest_of(env.EIGHT_BIT_REQUIREMENTS)})
    assert installation.up_to_date(environment, options("--with-8bit"))
    assert not installation.up_to_date(environment, options("--torch", "torch==2.8.0"))


def test_an_unreadable_record_counts_as_nothing_done(environment):
    environment.state_file.write_text("{", encoding="utf-8")
    assert environment.state() == {}
    assert not environment.is_ready


def test_a_failed_step_says_that_finished_steps_are_kept():
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(packages.SetupError, match="what is finished is kept"):
        packages.run(command, "Installing failed.")
