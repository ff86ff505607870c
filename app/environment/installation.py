"""`python install.py`: the steps of the set-up, and what runs in the environment afterwards."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from pathlib import Path

from . import (
    EIGHT_BIT_REQUIREMENTS,
    ROOT,
    TEST_REQUIREMENTS,
    WORKER,
    Environment,
    digest_of,
    packages,
    release,
    requirement_set,
    torch_source,
)
from .packages import run_inside
from .readiness import lender_is_there

COMMANDS = ("setup", "demo", "test")
# torch release -> the xformers built for it; from 2.10 on one build serves all. Every one is built
# for CUDA 12: beside a torch of another CUDA its kernels do not load, and it warns at each start.
XFORMERS = {"2.8.0": "0.0.32.post2", "2.9.0": "0.0.33.post1", "2.9.1": "0.0.33.post2"}
NEWEST_XFORMERS = "0.0.35"
XFORMERS_CUDA = "12."


def say(line: str) -> None:
    """Show one line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """The options of the set-up."""
    parser = argparse.ArgumentParser(
        prog="install.py",
        usage="python install.py [options] [setup | demo [ARGUMENTS] | test [ARGUMENTS]]",
        description="Make the training environment in .venv (setup, the default); then run the "
        "demo, or the tests. Nothing is installed anywhere else.",
        epilog="Arguments after `demo` go to the demo, those after `test` to pytest.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--torch", metavar="SPEC", help='the PyTorch to install, e.g. "torch==2.13.0"')
    add("--torch-index", metavar="URL", help="the package index to take PyTorch from")
    add("--no-xformers", action="store_true", help="do not install xformers (CUDA 12 only)")
    add("--with-tests", action="store_true", help="install the tools for tests and checks as well")
    add("--with-8bit", action="store_true", help="install bitsandbytes: 8-bit moments, nf4 base")
    return parser


def split(argv: list[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """(options, command, arguments for the command); options may stand on either side."""
    position = next((i for i, word in enumerate(argv) if word in COMMANDS), len(argv))
    command = argv[position] if position < len(argv) else "setup"
    options = parser().parse_args(argv[:position])
    rest = argv[position + 1 :]
    if command == "setup":
        parser().parse_args(rest, options)
        return options, command, []
    late = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--torch", "--torch-index"):
        late.add_argument(name, default=argparse.SUPPRESS)
    _, rest = late.parse_known_args(rest, options)
    options.with_tests |= command == "test"
    return options, command, rest


def torch_wish(options: argparse.Namespace) -> str:
    """What the user asked for about torch, as one string; "" when nothing."""
    return " ".join(part for part in (options.torch, options.torch_index) if part)


def up_to_date(environment: Environment, options: argparse.Namespace) -> bool:
    """Whether everything asked for is there; decided from the record, in milliseconds."""
    state = environment.state()
    if not environment.is_ready or not state.get("version") or not lender_is_there(environment):
        return False
    wanted = {"pins": requirement_set(environment.version).digest}
    wanted |= {name: digest_of(file) for name, file in extras(options).items()}
    if torch_wish(options):
        wanted["torch wish"] = torch_wish(options)
    return all(state.get(key) == value for key, value in wanted.items())


def extras(options: argparse.Namespace) -> dict[str, Path]:
    """The further lists of pins that are asked for, by their names in the record."""
    tests = {"tests": TEST_REQUIREMENTS} if options.with_tests else {}
    return tests | ({"8bit": EIGHT_BIT_REQUIREMENTS} if options.with_8bit else {})


def provide_torch(environment: Environment, options: argparse.Namespace) -> None:
    """Keep, borrow or install torch; in this order, unless the user says which."""
    state, folder = environment.state(), packages.packages_folder(environment)
    pins = requirement_set(environment.version)
    wish = torch_wish(options)
    if wish and state.get("torch wish") != wish:
        install_torch(environment, options.torch or pins.torch, options.torch_index)
        return
    own = torch_source.torch_in(folder)
    if own is not None and (wish or release(own.version) >= pins.torch_floor):
        say(f"    keeping PyTorch {own.version}")
        return
    if not borrow_torch(environment, pins.torch_floor):
        install_torch(environment, pins.torch, None)


def borrow_torch(environment: Environment, floor: tuple[int, int]) -> bool:
    """Borrow torch from the running interpreter; False when there is none that fits."""
    host = torch_source.torch_of_this_python()
    if host is None or environment.version != sys.version_info[:2]:
        return False
    if release(host.version) < floor:
        say(f"    PyTorch {host.version} of this Python is older than {floor[0]}.{floor[1]}")
        return False
    torch_source.lend(
        host, torch_source.borrowed_folders(host), packages.packages_folder(environment)
    )
    if packages.torch_facts(environment) is None:
        torch_source.take_back(packages.packages_folder(environment))
        say(f"    PyTorch {host.version} of this Python does not work outside it")
        return False
    environment.record(**{"torch from": str(host.folder), "torch lent": host.version})
    say(f"    using PyTorch {host.version} from {host.folder}")
    return True


def install_torch(environment: Environment, spec: str, index: str | None) -> None:
    """Install a torch of the environment's own."""
    torch_source.take_back(packages.packages_folder(environment))
    gpu = torch_source.gpu_seen()
    problem = f"Installing PyTorch ({spec}) failed."
    say(f"    installing {spec}" + (f" from {index}" if index else "") + " (this can take minutes)")
    if index is None and torch_source.default_wheel_is_cpu_only(gpu) and shutil.which("uv"):
        packages.uv_install(environment, spec, problem=problem)
    else:
        if index is None and not gpu and sys.platform == "linux":
            say("    no GPU is visible; if this downloads gigabytes of CUDA, stop and choose the")
            say(f"    CPU build with --torch-index (addresses: {packages.PYTORCH_PAGE})")
        where = ["--index-url", index] if index else []
        packages.pip_install(environment, spec, *where, problem=problem, shown=True)
    environment.record(**{"torch from": ""})


def check_torch(environment: Environment) -> dict[str, str]:
    """Import torch once, and say clearly when a GPU lies idle."""
    facts = packages.torch_facts(environment)
    if facts is None:
        raise packages.SetupError(
            "PyTorch is installed but does not import. Choose another build with "
            f"`python install.py --torch SPEC --torch-index URL` ({packages.PYTORCH_PAGE})."
        )
    say(f"    PyTorch {facts['version']} ({facts['build']}), device: {facts['device'] or 'CPU'}")
    gpu = torch_source.gpu_seen()
    if gpu and facts["build"] == "CPU":
        say(f"    NOTE: this machine has an {gpu} GPU, but this PyTorch is a CPU build: training")
        say("    would be very slow. Choose the line for your GPU on")
        say(f"    {packages.PYTORCH_PAGE}, take the URL after --index-url from it, and run")
        say("        python install.py --torch-index URL")
    elif facts.get("problem"):
        say(f"    NOTE: this PyTorch cannot compute on the GPU ({facts['problem']}).")
        say("    Choose a build that still, or already, serves this card on")
        say(f"    {packages.PYTORCH_PAGE} and run python install.py --torch SPEC --torch-index URL")
    elif gpu and not facts["device"]:
        say(
            f"    NOTE: this PyTorch is a {facts['build']} build but finds no device: the driver is"
        )
        say("    missing, too old for it, or hidden from this process.")
    environment.record(torch=facts["version"])
    return facts


def add_xformers(environment: Environment, facts: dict[str, str]) -> None:
    """Install the xformers that fits this torch; without it PyTorch's own attention serves."""
    version = facts["version"].split("+")[0]
    fitting = NEWEST_XFORMERS if release(version) >= (2, 10) else XFORMERS.get(version)
    machine = platform.machine().lower()
    cuda = facts["build"] == "CUDA" and facts["cuda"].startswith(XFORMERS_CUDA)
    if not cuda or fitting is None or machine not in ("x86_64", "amd64"):
        return
    try:
        say(f"    xformers {fitting}")
        packages.pip_install(
            environment, "--no-deps", f"xformers=={fitting}", problem="xformers failed."
        )
    except packages.SetupError:
        say("    xformers could not be installed; PyTorch's own attention is used")


def set_up(options: argparse.Namespace, environment: Environment = WORKER) -> None:
    """Bring the environment to what is asked for; finished steps are not repeated."""
    if up_to_date(environment, options):
        say(f"The training environment is ready ({environment.home}).")
        return
    say(f"Setting up the training environment in {environment.home}")
    say("[1/3] Python")
    packages.make(environment, say)
    if sys.version_info[:2] > (3, 13):
        say("    note: tried with Python 3.10 to 3.13; this one is newer")
    environment.record(ready="no")
    say("[2/3] PyTorch")
    provide_torch(environment, options)
    facts = check_torch(environment)
    if torch_wish(options):
        environment.record(**{"torch wish": torch_wish(options)})
    say("[3/3] packages")
    pins = {"pins": requirement_set(environment.version).file}
    for name, file in (pins | extras(options)).items():
        packages.install_pinned(environment, file)
        environment.record(**{name: digest_of(file)})
    if not options.no_xformers:
        add_xformers(environment, facts)
    environment.record(ready="yes")
    say("Ready.")


def run_demo(arguments: list[str], environment: Environment = WORKER) -> int:
    """Exit status of the command line's `demo`."""
    return run_inside(environment, str(ROOT), "demo", *arguments)


def run_tests(arguments: list[str], environment: Environment = WORKER) -> int:
    """Exit status of the test suite; the whole of it runs on all cores."""
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    named = any(not word.startswith("-") for word in arguments)
    where = [] if named else [str(ROOT / "tests"), "-n", "auto", "--dist", "worksteal"]
    return run_inside(environment, "-m", "pytest", *config, *where, *arguments)


def main(argv: list[str]) -> int:
    """Exit status of `python install.py`."""
    options, command, rest = split(argv)
    try:
        set_up(options)
    except packages.SetupError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. The same command goes on where it stopped.\n")
        return 130
    if command == "demo":
        return run_demo(rest)
    if command == "test":
        return run_tests(rest)
    say("Next: `python install.py demo`, or see README.md for your own checkpoint.")
    return 0
