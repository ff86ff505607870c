"""Makes the environment and installs packages into it, with pip or uv."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...core.errors import DPDMDError
from . import Environment

Say = Callable[[str], None]
PYTORCH_PAGE = "https://pytorch.org/get-started/locally"


class SetupError(DPDMDError):
    """A step of the set-up that failed, and what to do about it."""


def can_make_venv() -> bool:
    """Whether this Python has `venv` and a pip to put into it."""
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def runs(environment: Environment, *arguments: str) -> bool:
    """Whether the environment's interpreter starts and runs `arguments` without an error."""
    try:
        process = subprocess.run(
            environment.command(*arguments), env=environment.variables(), capture_output=True
        )
    except OSError:
        return False
    return process.returncode == 0


def make(environment: Environment, say: Say) -> None:
    """Make the venv, or the folder of packages, unless it is there and works."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if environment.is_folder and environment.python.exists():
        return
    if not environment.is_folder and environment.venv_python.exists():
        if runs(environment, "-m", "pip", "--version"):
            if "version" not in environment.state():
                environment.record(kind="venv", version=version_of(environment))
            return
        say(f"    {environment.home} is incomplete or its Python is gone: making it again")
        shutil.rmtree(environment.home)
    if can_make_venv():
        say(f"    making {environment.home} with Python {version}")
        run([sys.executable, "-m", "venv", str(environment.home)], "Making the environment failed.")
        environment.record(kind="venv", python=str(environment.venv_python), version=version)
        return
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            f"This Python ({sys.executable}) has neither `venv` with `ensurepip` nor `pip`. "
            "Install them (on Debian and Ubuntu: the package python3-venv) or use another Python."
        )
    say(f"    this Python has no venv module: packages go into {environment.packages}")
    environment.packages.mkdir(parents=True, exist_ok=True)
    environment.record(kind="folder", python=sys.executable, version=version)


def version_of(environment: Environment) -> str:
    """The Python version of a venv, from its configuration file."""
    text = (environment.home / "pyvenv.cfg").read_text(encoding="utf-8")
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    version = next(v for k, v in found.items() if k.strip() in ("version", "version_info"))
    return ".".join(version.strip().split(".")[:2])


def packages_folder(environment: Environment) -> Path:
    """Where the environment's packages lie."""
    if environment.is_folder:
        return environment.packages
    if os.name == "nt":
        return environment.home / "Lib" / "site-packages"
    name = f"python{environment.state()['version']}"
    return environment.home / "lib" / name / "site-packages"


def run(command: list[str], problem: str, variables: dict[str, str] | None = None) -> None:
    """Run a command whose own messages the user sees; a failure becomes a SetupError."""
    try:
        status = subprocess.run(command, env=variables).returncode
    except OSError as error:
        raise SetupError(f"{problem} {command[0]}: {error.strerror}.") from error
    if status != 0:
        raise SetupError(
            f"{problem} The reason stands before this in the log. Try again when it is mended: "
            "what is finished is kept."
        )


def pip_install(
    environment: Environment, *arguments: str, problem: str, shown: bool = False
) -> None:
    """`pip install` into the environment; errors are always shown, progress when asked for."""
    quiet = [] if shown and sys.stdout.isatty() else ["-qq"]
    options = ["--disable-pip-version-check", "--no-input", *quiet]
    variables = environment.variables() | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    if environment.is_folder:
        target = ["--target", str(environment.packages), "--upgrade"]
        command = [str(environment.python), "-m", "pip", "install", *options, *target, *arguments]
    else:
        command = environment.command("-m", "pip", "install", *options, *arguments)
    run(command, problem, variables)


def uv_install(environment: Environment, *arguments: str, problem: str) -> None:
    """`uv pip install` with the torch build that fits this machine's GPU."""
    place = ["--python", str(environment.python)]
    if environment.is_folder:
        place += ["--target", str(environment.packages)]
    run(["uv", "pip", "install", *place, "--torch-backend=auto", *arguments], problem)


def install_pinned(environment: Environment, requirements: Path) -> None:
    """Install a complete list of pins, torch excepted; nothing is resolved."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "torch=="))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / requirements.name
        file.write_text("\n".join(pins) + "\n", encoding="utf-8")
        pip_install(
            environment, "--no-deps", "-r", str(file), problem="Installing the packages failed."
        )


def run_inside(environment: Environment, *arguments: str) -> int:
    """Exit status of a program in the environment; Ctrl-C is the program's to handle."""
    process = subprocess.Popen(environment.command(*arguments), env=environment.variables())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def torch_facts(environment: Environment) -> dict[str, str] | None:
    """What probe.py says inside the environment; None when torch does not work there."""
    probe = str(Path(__file__).with_name("probe.py"))
    process = subprocess.run(
        environment.command(probe), env=environment.variables(), capture_output=True, text=True
    )
    return json.loads(process.stdout) if process.returncode == 0 else None
