"""Starts Python with a folder of packages: `python -I boot.py FOLDER -m MODULE …` or `… FILE …`.

For interpreters that cannot make a venv and ignore PYTHONPATH, as the embeddable Pythons for
Windows that portable hosts ship. The folder comes first on sys.path, and the interpreter's own
site-packages leave it: the worker sees its packages and the borrowed torch, nothing else.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

HOST_FOLDERS = ("site-packages", "dist-packages")
BORROWED = "_dpdmd_borrowed_torch"


def enter(packages: Path) -> None:
    """Let this process import from `packages` in place of the interpreter's site-packages."""
    rest = [entry for entry in sys.path if Path(entry).name not in HOST_FOLDERS]
    sys.path[:] = [str(packages), *(entry for entry in rest if entry != str(packages))]
    importlib.invalidate_caches()
    if (packages / f"{BORROWED}.py").is_file():
        importlib.import_module(BORROWED)


def run(packages: str, program: str, *arguments: str) -> None:
    """Run a module (`-m NAME`) or a file, as `python` does."""
    own_folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != own_folder]
    enter(Path(packages).absolute())
    if program == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    run(*sys.argv[1:])
