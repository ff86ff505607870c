"""The arrows of the architecture: hosts -> trainer -> core, heavy libraries in the engine alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "trainer", "comfy_nodes", "webui_extension")

# layer of the importing file -> layers it may import when it is loaded
ARROWS = {
    "core": {"core"},
    "trainer": {"trainer", "core"},
    "trainer/engine": {"trainer/engine", "trainer", "core"},
    "comfy_nodes": {"comfy_nodes", "trainer", "core"},
    "webui_extension": {"webui_extension", "trainer", "core"},
    "": {"comfy_nodes"},
}
# ... and, on top of that, inside a function (the command line starts the engine it needs)
LATE_ARROWS = {"trainer": {"trainer/engine"}}

EVERY_HOST_HAS = {"torch", "safetensors", "numpy", "PIL"}
WORKER_HAS = {
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "dynamicprompts",
    "pyparsing",
}
LIBRARIES = {
    "core": EVERY_HOST_HAS,
    "trainer": EVERY_HOST_HAS | {"tqdm"},
    "trainer/engine": EVERY_HOST_HAS | WORKER_HAS | {"tqdm"},
    "comfy_nodes": EVERY_HOST_HAS,
    "webui_extension": EVERY_HOST_HAS,
    "": set(),
}
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "nodes",
}
WEBUI = {"modules", "modules_forge", "backend", "ldm_patched", "k_diffusion"}
# single files that may import more than their layer
EXCEPTIONS = {
    "core/attention.py": {"xformers"},
    "trainer/training/optimizers.py": {"bitsandbytes"},
    "app/gui/app.py": {"gradio", "uvicorn", "fastapi"},
    "app/gui/pages/compare.py": {"gradio"},
    "app/gui/pages/distill.py": {"gradio"},
    "app/gui/widgets/dropdown.py": {"gradio"},
    "app/gui/pages/runs.py": {"gradio"},
    "app/gui/pages/share.py": {"gradio"},
    "app/gui/studio.py": {"gradio"},
    "app/gui/widgets/theme.py": {"gradio"},
    "app/gui/widgets/wiring.py": {"gradio"},
    "comfy_nodes/host/__init__.py": COMFYUI | {"server", "execution", "aiohttp"},
    "webui_extension/sampling/accordion.py": {"gradio"},
    "webui_extension/host/__init__.py": WEBUI | {"gradio", "starlette"},
    "webui_extension/training/train_tab.py": {"gradio"},
}

# These read bytes and headers only: they must load where torch cannot.
WITHOUT_TORCH = (
    "__init__.py",
    "core/__init__.py",
    "core/errors.py",
    "core/families/*.py",
    "core/files/hashes.py",
    "core/lora/header.py",
    "core/files/png_info.py",
    "core/recipe/recipe.py",
    "core/files/tensor_file.py",
    "trainer/__init__.py",
    "trainer/api/*.py",
    "cli/__init__.py",
    "app/config/distill_config.py",
    "trainer/diagnosis*.py",
    "app/estimate.py",
    "app/runs/exit_note.py",
    "trainer/gui/*_form.py",
    "app/gui/forms/controls.py",
    "app/gui/forms/distill_hints.py",
    "app/api/guard.py",
    "app/gui/widgets/runs_view.py",
    "app/library/inspect.py",
    "trainer/jobs/*.py",
    "app/library/model_folders.py",
    "app/config/new_run.py",
    "app/library/preferences.py",
    "app/prompts/reading.py",
    "app/runs/directory.py",
    "app/runs/facts.py",
    "app/runs/settings_file.py",
    "trainer/share/*.py",
)


@dataclass(frozen=True)
class Import:
    """One imported name of a file: `target` is a path of ours, or the name of a library."""

    target: str
    ours: bool
    late: bool  # inside a function, so not when the file is loaded


def layer_of(path: str) -> str:
    """The layer that a path relative to the root belongs to; "" is the root itself."""
    if path.startswith("trainer/engine"):
        return "trainer/engine"
    first = path.split("/")[0]
    return first if first in FOLDERS else ""


def type_checking_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every import statement with whether it runs late; those for type checkers do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, late
        elif type_checking_only(child):
            for other in child.orelse:  # type: ignore[attr-defined]
                yield from import_nodes(ast.Module([other], []), late)
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from import_nodes(child, late or function)


def imports_of(path: str, source: str) -> Iterator[Import]:
    """What the file `path` (relative to the root) imports, relative imports resolved to paths."""
    package = path.split("/")[:-1]
    for node, late in import_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name.split(".")[0], ours=False, late=late)
        elif node.level == 0:
            yield Import((node.module or "").split(".")[0], ours=False, late=late)
        else:
            base = package[: len(package) + 1 - node.level]
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield Import("/".join([*base, *module, alias.name]), ours=True, late=late)


def violations(path: str, source: str) -> list[str]:
    """One sentence for each import of the file that points the wrong way."""
    layer = layer_of(path)
    libraries = LIBRARIES[layer] | EXCEPTIONS.get(path, set()) | set(sys.stdlib_module_names)
    found = []
    for item in imports_of(path, source):
        if item.ours:
            allowed = ARROWS[layer] | (LATE_ARROWS.get(layer, set()) if item.late else set())
            if layer_of(item.target) not in allowed | {""}:
                found.append(f"{path} must not import {item.target}")
        elif item.target in (*FOLDERS, "dpdmd_studio"):
            found.append(f"{path} imports {item.target} absolutely; our own imports are relative")
        elif item.target not in libraries:
            found.append(f"{path} must not import {item.target}")
    return found


def package_files() -> list[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*files, ROOT / "__init__.py"])


def test_every_import_follows_the_arrows():
    found = [
        sentence
        for path in package_files()
        for sentence in violations(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/diffusion/schedule.py", "from ..trainer import config"),
        ("core/diffusion/schedule.py", "from .. import trainer"),
        ("core/diffusion/schedule.py", "import diffusers"),
        ("core/diffusion/schedule.py", "def f():\n    import peft"),
        ("core/families/sd3.py", "from ...trainer.engine.losses import dmd_loss"),
        ("app/config/distill_config.py", "from .engine import losses"),
        ("app/config/distill_config.py", "import transformers"),
        ("trainer/training/loop.py", "from ...comfy_nodes import host"),
        ("trainer/training/loop.py", "import gradio"),
        ("comfy_nodes/sampler_nodes.py", "from ..webui_extension import host"),
        ("comfy_nodes/sampler_nodes.py", "from ..trainer.engine import losses"),
        ("comfy_nodes/sampler_nodes.py", "import comfy.samplers"),
        ("webui_extension/samplers.py", "from modules import sd_samplers"),
        ("core/diffusion/schedule.py", "from core import errors"),
        ("core/diffusion/schedule.py", "from dpdmd_studio.core import errors"),
        ("__init__.py", "from .trainer import cli"),
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
        ("cli/__init__.py", "def f():\n    from .engine import loop"),
        ("comfy_nodes/host/__init__.py", "import comfy.samplers"),
        ("webui_extension/host/__init__.py", "from modules import sd_samplers"),
        ("core/recipe/recipe.py", "if TYPE_CHECKING:\n    import peft"),
    ],
)
def test_an_allowed_import_is_not_reported(path, line):
    assert not violations(path, line)


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


def without_torch() -> dict[str, str]:
    """Modules of the header-only list -> their file."""
    files = [path for pattern in WITHOUT_TORCH for path in sorted(ROOT.glob(pattern))]
    names = {}
    for path in files:
        relative = path.relative_to(ROOT).with_suffix("").as_posix()
        dotted = "dpdmd_studio." + relative.replace("/", ".")
        names[dotted.removesuffix("__init__").rstrip(".")] = str(path)
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
