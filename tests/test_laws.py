"""The laws of the house (docs/architecture.md): who may import what, held over the source itself.

A room imports only rooms that stand before it. Imports inside functions and those for type
checkers count like any other.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each storey with its rooms, in order: a room imports its own files and rooms before it.
CORE = ("errors", "files", "diffusion", "families", "recipe", "lora", "attention", "images")
APP = ("prompts", "library", "config", "runs", "findings", "report", "environment", "estimate",
       "disk", "jobs", "share", "api", "gui")  # fmt: skip
TRAINER = ("device", "distributed", "method", "model", "attention", "families", "loading", "text",
           "memory", "training", "evaluation", "toys", "commands")  # fmt: skip
HOST = ("host", "sampling", "training")
STOREYS = {"core": CORE, "app": APP, "trainer": TRAINER, "cli": (),
           "comfy_nodes": HOST, "webui_extension": HOST}  # fmt: skip
# which storeys a storey sees besides itself
SEES = {"core": (), "app": ("core",), "trainer": ("core", "app"), "cli": ("core", "app"),
        "comfy_nodes": ("core", "app"), "webui_extension": ("core", "app"), "": ()}  # fmt: skip
# rooms that see less than their place in the order allows
NARROW = {
    "core/diffusion": ("core/errors",),
    "trainer/method": ("core/diffusion",),
}
# who may import late what the order forbids: commands start what they need, and the root its nodes
LATE = {"cli": ("trainer/commands",), "": ("comfy_nodes",)}

EVERY_HOST_HAS = {"torch", "safetensors", "numpy", "PIL", "filelock"}  # the last with torch
TEMPLATES = {"jinja2", "markupsafe"}  # torch needs them, so every host has them
WORKER_HAS = {"diffusers", "transformers", "peft", "accelerate", "tokenizers", "markdown_it"}
LIBRARIES = {
    "core": EVERY_HOST_HAS,
    "app": EVERY_HOST_HAS | TEMPLATES | {"tqdm"},
    "trainer": EVERY_HOST_HAS | WORKER_HAS | {"tqdm"},
    "cli": set(),
    "comfy_nodes": EVERY_HOST_HAS,
    "webui_extension": EVERY_HOST_HAS,
    "": set(),
}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths",
           "latent_preview", "nodes", "server", "execution", "aiohttp"}  # fmt: skip
WEBUI = {"modules", "modules_forge", "backend", "ldm_patched", "k_diffusion", "starlette"}
# the files that may import more than their storey
MORE_LIBRARIES = {
    "app/gui/app.py": {"gradio", "uvicorn", "fastapi"},
    "app/gui/guard.py": {"starlette"},
    "app/gui/pages/*.py": {"gradio"},
    "app/gui/studio.py": {"gradio"},
    "app/gui/widgets/theme.py": {"gradio"},
    "app/gui/widgets/wiring.py": {"gradio"},
    "comfy_nodes/host/*.py": COMFYUI,
    "core/attention.py": {"xformers"},
    "trainer/training/optimizers.py": {"bitsandbytes"},
    "webui_extension/host/*.py": WEBUI | {"gradio"},
    "webui_extension/sampling/accordion.py": {"gradio"},
    "webui_extension/training/train_tab.py": {"gradio"},
}

# These read bytes and headers only: they must load where torch cannot.
WITHOUT_TORCH = (
    "__init__.py",
    "app/*.py",
    "app/api/*.py",
    "app/config/*.py",
    "app/environment/*.py",
    "app/findings/*.py",
    "app/gui/forms/*.py",
    "app/gui/widgets/html.py",
    "app/gui/widgets/runs_view.py",
    "app/jobs/*.py",
    "app/library/*.py",
    "app/prompts/*.py",
    "app/runs/*.py",
    "app/share/*.py",
    "cli/*.py",
    "core/errors.py",
    "core/families/*.py",
    "core/files/*.py",
    "core/lora/contents.py",
    "core/lora/header.py",
    "core/lora/keys.py",
    "core/lora/metadata.py",
    "core/lora/shapes.py",
    "core/recipe/checks.py",
    "core/recipe/merged_loras.py",
    "core/recipe/recipe.py",
)


@dataclass(frozen=True)
class Import:
    """One imported name of a file: `target` is a path of ours, or the name of a library."""

    target: str
    ours: bool
    late: bool  # inside a function or for type checkers, so not when the file is loaded


def import_nodes(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every import statement with whether it does not run when the file is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, late
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checker = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from import_nodes(child, late or function or checker)


def imports_of(path: str, source: str) -> Iterator[Import]:
    """What the file `path` (relative to the root) imports, relative imports resolved to paths."""
    package = path.split("/")[:-1]
    for node, late in import_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name.split(".")[0], ours=False, late=late)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield Import((node.module or "").split(".")[0], ours=False, late=late)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level]
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield Import("/".join([*base, *module, alias.name]), ours=True, late=late)


def storey_of(path: str) -> str:
    """The storey that a path relative to the root belongs to; "" is the root itself."""
    first = path.split("/")[0]
    return first if first in STOREYS else ""


def place_of(path: str) -> tuple[str, int]:
    """(room, its place in its storey); what stands in no room comes after all rooms."""
    storey = storey_of(path)
    rooms = STOREYS.get(storey, ())
    parts = path.removesuffix(".py").split("/")
    if len(parts) > 1 and parts[1] in rooms:
        return f"{storey}/{parts[1]}", rooms.index(parts[1])
    return storey, len(rooms)


def allowed(path: str, item: Import) -> bool:
    """Whether law 1 and 2 let the file `path` import this name of ours."""
    (room, place), (other, other_place) = place_of(path), place_of(item.target)
    storey, other_storey = storey_of(path), storey_of(item.target)
    if room == other:
        return True
    if item.late and any(other == late for late in LATE.get(storey, ())):
        return True
    if room in NARROW:
        return other in NARROW[room]
    if storey == other_storey:
        return other_place < place
    return other_storey in SEES[storey] or (other_storey == "" and "/" not in item.target)


def violations(path: str, source: str) -> list[tuple[str, str]]:
    """(file, what it must not import) of each import that points the wrong way."""
    storey = storey_of(path)
    libraries = LIBRARIES[storey] | set(sys.stdlib_module_names)
    for pattern, more in MORE_LIBRARIES.items():
        libraries |= more if fnmatch(path, pattern) else set()
    return [
        (path, item.target)
        for item in imports_of(path, source)
        if not (allowed(path, item) if item.ours else item.target in libraries)
    ]


def product_files() -> dict[str, str]:
    """Every file of the product -> its source."""
    paths = [path for folder in STOREYS for path in (ROOT / folder).rglob("*.py")]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted([*paths, ROOT / "__init__.py"])
    }


def test_every_import_follows_the_order():
    found = {pair for path, source in product_files().items() for pair in violations(path, source)}
    assert not found, "\n".join(f"{a} must not import {b}" for a, b in sorted(found))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/diffusion/schedule.py", "from ...trainer import device"),
        ("core/diffusion/schedule.py", "from ... import trainer"),
        ("core/diffusion/schedule.py", "from ..recipe import recipe"),
        ("core/diffusion/schedule.py", "from ..files import hashes"),
        ("core/diffusion/schedule.py", "import diffusers"),
        ("core/diffusion/schedule.py", "def f():\n    import peft"),
        ("core/diffusion/schedule.py", "def f():\n    from ..recipe import recipe"),
        ("core/families/sd3.py", "if TYPE_CHECKING:\n    from ..recipe.recipe import Recipe"),
        ("core/families/sd3.py", "from ...trainer.method.equations import dmd_loss"),
        ("core/diffusion/schedule.py", "from core import errors"),
        ("core/diffusion/schedule.py", "from dpdmd_studio.core import errors"),
        ("app/config/presets.py", "from ..jobs import queue"),
        ("app/config/presets.py", "def f():\n    from ..jobs import queue"),
        ("app/config/presets.py", "def f():\n    from ...trainer.commands import distill"),
        ("app/config/presets.py", "import transformers"),
        ("app/share/describe.py", "from markdown_it import MarkdownIt"),
        ("app/estimate.py", "from .jobs import queue"),
        ("trainer/method/equations.py", "from ...app.config import presets"),
        ("trainer/method/equations.py", "from ..device import to_device"),
        ("trainer/method/equations.py", "from ...core.families import base"),
        ("trainer/method/equations.py", "if TYPE_CHECKING:\n    from ..model import conditioning"),
        ("trainer/training/loop.py", "from ...comfy_nodes import host"),
        ("trainer/training/loop.py", "from ...cli import main"),
        ("trainer/training/loop.py", "from ..evaluation import monitor"),
        ("trainer/training/loop.py", "import gradio"),
        ("cli/__init__.py", "from ..trainer.commands import distill"),
        ("cli/__init__.py", "def f():\n    from ..trainer.evaluation import monitor"),
        ("comfy_nodes/sampling/few_step.py", "from ...webui_extension import host"),
        ("comfy_nodes/sampling/few_step.py", "from ...trainer.method import equations"),
        ("comfy_nodes/sampling/few_step.py", "from ... import cli"),
        ("comfy_nodes/sampling/few_step.py", "from ..training import runs"),
        ("comfy_nodes/sampling/few_step.py", "import comfy.samplers"),
        ("webui_extension/sampling/sampler.py", "from modules import sd_samplers"),
        ("__init__.py", "from . import comfy_nodes"),
        ("__init__.py", "def f():\n    from .trainer.commands import distill"),
        ("__init__.py", "import torch"),
    ],
)
def test_a_planted_violation_is_caught(path, line):
    assert violations(path, line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/families/sd3.py", "from ..errors import DPDMDError"),
        ("trainer/training/loop.py", "from ...core.errors import DPDMDError"),
        ("trainer/training/loop.py", "import diffusers"),
        ("cli/__init__.py", "def f():\n    from ..trainer.commands import distill"),
        ("cli/__init__.py", "from .. import __version__"),
        ("comfy_nodes/host/__init__.py", "import comfy.samplers"),
        ("webui_extension/host/__init__.py", "from modules import sd_samplers"),
        ("__init__.py", "def f():\n    from . import comfy_nodes"),
    ],
)
def test_an_allowed_import_is_not_reported(path, line):
    assert not violations(path, line)


def graph(files: Mapping[str, str]) -> dict[str, set[str]]:
    """File -> the files of ours that it imports, wherever in it."""
    edges: dict[str, set[str]] = {}
    for path, source in files.items():
        edges[path] = set()
        for item in imports_of(path, source):
            if path == "__init__.py" and item.late:  # the node table, asked for by ComfyUI alone
                continue
            parent = item.target.rpartition("/")[0]
            names = (f"{item.target}.py", f"{item.target}/__init__.py", f"{parent}.py",
                     f"{parent}/__init__.py" if parent else "__init__.py")  # fmt: skip
            target = next((name for name in names if item.ours and name in files), None)
            if target not in (None, path):
                edges[path].add(target)
    return edges


def circles(files: Mapping[str, str]) -> list[set[str]]:
    """Sets of files that import each other, directly or by way of others."""
    edges = graph(files)

    def reached(start: str) -> set[str]:
        seen, waiting = set(), list(edges[start])
        while waiting:
            path = waiting.pop()
            if path not in seen:
                seen.add(path)
                waiting += edges[path]
        return seen

    beyond = {path: reached(path) for path in edges}
    found = [
        {other for other in beyond[path] if path in beyond[other]}
        for path in edges
        if path in beyond[path]
    ]
    return [circle for i, circle in enumerate(found) if circle not in found[:i]]


def test_no_files_import_each_other():
    assert not circles(product_files())


@pytest.mark.parametrize(
    "line",
    [
        "from . import first",
        "from .first import a",
        "def f():\n    from .first import a",
        "if TYPE_CHECKING:\n    from .first import a",
        "from . import third",
    ],
)
def test_a_planted_circle_is_caught(line):
    files = {"core/first.py": "from .second import b", "core/second.py": line,
             "core/third.py": "from ..core import first", "core/__init__.py": ""}  # fmt: skip
    assert circles(files)
    assert not circles(files | {"core/second.py": "from ..core import fourth"})


BLOCKED_TORCH = """
import importlib, importlib.util, json, sys
root, modules = sys.argv[1], sys.argv[2:]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is out of reach here")
sys.meta_path.insert(0, Blocker())
spec = importlib.util.spec_from_file_location("dpdmd_studio", root + "/__init__.py")
sys.modules["dpdmd_studio"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
failed = {{}}
for name in modules:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def without_torch() -> list[str]:
    """Module names of the header-only list."""
    files = [path for pattern in WITHOUT_TORCH for path in sorted(ROOT.glob(pattern))]
    names = []
    for path in files:
        relative = path.relative_to(ROOT).with_suffix("").as_posix()
        dotted = "dpdmd_studio." + relative.replace("/", ".")
        names.append(dotted.removesuffix("__init__").rstrip("."))
    return names


def test_header_only_modules_load_where_torch_cannot_be_imported():
    blocked = {"torch", "numpy", "xformers", "gradio", *WORKER_HAS}
    script = BLOCKED_TORCH.format(blocked=sorted(blocked))
    process = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), *without_torch()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(process.stdout) == {}


@pytest.mark.parametrize("pattern", WITHOUT_TORCH)
def test_the_header_only_list_names_files_that_exist(pattern):
    assert list(ROOT.glob(pattern)), f"{pattern} names no file"
