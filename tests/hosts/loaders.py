"""How the hosts load a checkout, re-stated in a few lines each; run as a program by the tests.

`python loaders.py VISITS RIVAL CHECKOUT...` loads every checkout as hosts do, with a rival
extension that owns a top-level package `trainer` loaded before or after, and prints what it saw as
one JSON object, by host and order. VISITS is "all" or one of those, "forge after". Each starts
afresh: in a copy of a process that has nothing but torch, as hosts have it before they load
extensions. Nothing is taken from the hosts' sources.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import sys
import traceback
from pathlib import Path
from types import ModuleType

PACKAGE = "dpdmd_studio"
HOSTS = ("comfyui", "a1111", "forge")
ORDERS = ("before", "after")


def load_file(name: str, path: Path, *, register: bool) -> ModuleType:
    """The module of one file; `register` puts it into sys.modules first, as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if register:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_like_comfyui(checkout: Path) -> dict[str, object]:
    """ComfyUI: the package under its own path as name, dots replaced, then asked for its tables."""
    name = str(checkout).replace(".", "_x_")
    module = load_file(name, checkout / "__init__.py", register=True)
    return {
        "name": name,
        "tables": [
            hasattr(module, "NODE_CLASS_MAPPINGS") and type(module.NODE_CLASS_MAPPINGS).__name__,
            type(module.NODE_DISPLAY_NAME_MAPPINGS).__name__,
        ],
        "web": hasattr(module, "WEB_DIRECTORY"),
    }


def load_like_webui(checkout: Path) -> dict[str, object]:
    """A1111: every file in scripts/ is executed, twice here as after a UI reload.

    The extension's root leads sys.path only meanwhile.
    """
    before = list(sys.path)
    sys.path.insert(0, str(checkout))
    for _ in range(2):
        for script in sorted((checkout / "scripts").glob("*.py")):
            load_file(script.name, script, register=False)
    sys.path[:] = before
    return {"name": PACKAGE}


def load_rival(folder: Path) -> object:
    """Another extension whose script does `from trainer import train`."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    trainer = importlib.import_module("trainer")
    sys.path[:] = before
    return Path(str(trainer.__file__)).parent.parent == folder and trainer.OWNER


def import_late(name: str, checkout: Path) -> list[str]:
    """Modules of ours that come from elsewhere when they are imported long after loading."""
    strangers = []
    for part in ("core.errors", "app", "trainer", "cli", "comfy_nodes", "webui_extension"):
        module = importlib.import_module(f"{name}.{part}")
        if checkout not in Path(str(module.__file__)).parents:
            strangers.append(part)
    return strangers


def forget(checkout: Path, rival: Path) -> None:
    """Drop what a checkout and the rival left behind, so that the next name starts afresh."""
    prefixes = (PACKAGE, str(checkout).replace(".", "_x_"), "trainer")
    for name in list(sys.modules):
        if name.startswith(prefixes):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry not in (str(checkout), str(rival))]
    importlib.invalidate_caches()


def visit(host: str, order: str, checkout: Path, rival: Path) -> dict[str, object]:
    """What one checkout looks like after loading in one host."""
    report: dict[str, object] = {}
    if host == "forge":  # it puts every extension's root on sys.path beforehand, and for good
        sys.path[:0] = [str(checkout), str(rival)]
    if order == "before":
        report["rival"] = load_rival(rival)
    report |= load_like_comfyui(checkout) if host == "comfyui" else load_like_webui(checkout)
    if order == "after":
        report["rival"] = load_rival(rival)
    report["strangers"] = import_late(str(report["name"]), checkout)
    report["rival_later"] = importlib.import_module("trainer").OWNER
    return report


def visit_all(host: str, order: str, rival: str, checkouts: list[str]) -> dict[str, object]:
    """The reports on every checkout, by folder name."""
    reports: dict[str, object] = {}
    for checkout in map(Path, checkouts):
        try:
            reports[checkout.name] = visit(host, order, checkout, Path(rival))
        except Exception:
            reports[checkout.name] = {"error": traceback.format_exc()}
        forget(checkout, Path(rival))
    return reports


def main(visits: str, rival: str, *checkouts: str) -> None:
    """Visit every checkout in the hosts, and print the reports."""
    every = [f"{host} {order}" for host in HOSTS for order in ORDERS]
    names = every if visits == "all" else [visits]
    can_fork = sys.platform == "linux"
    if can_fork and len(names) > 1:
        importlib.import_module("torch")
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        tasks = [(*name.split(), rival, checkouts) for name in names]
        found = pool.starmap(visit_all, tasks, chunksize=1)
    sys.stdout.write(json.dumps(dict(zip(names, found, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
