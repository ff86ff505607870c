"""Used. Every definition of the product is used by the product."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("core", "app", "trainer", "cli", "comfy_nodes", "webui_extension", "scripts")
TOP = ("__init__.py", "__main__.py", "install.py")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# Names that a framework or the language looks up. All else that only a framework calls is told to
# it as a value or by name, and that is a use.
ENTRY_POINTS = {
    "ComfyUI's nodes": {"INPUT_TYPES", "IS_CHANGED", "VALIDATE_INPUTS"},
    "ComfyUI's node packs": {"WEB_DIRECTORY"},
    "comfy_nodes/__init__.py, which reads it from every node's module": {"NODES"},
    "A1111's attention optimizations": {"undo"},
    "Python's modules": {"__getattr__"},
    "Python's logging handlers": {"emit"},
}
KNOWN = set().union(*ENTRY_POINTS.values())
IN_TEMPLATE = re.compile(r"\b\w+\.(\w+)")


def unused(root: Path) -> list[str]:
    """ "file: name" of what nothing outside of itself uses.

    What is defined at the top of a file is used where the file reads it again, or where another
    file imports it (linters see that imports are read) or reads it from the imported module. A
    package's `__init__` that only hands a name on uses it if that name is used. A method of such a
    class is used where any file, a template too, reads an attribute of its name. A text that is
    nothing but the name is a use as well: frameworks are told names as texts. Tests are no use.
    """
    files = [root / name for name in TOP if (root / name).exists()]
    files += [path for folder in PRODUCT for path in sorted((root / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    told: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    for tree in trees.values():
        told.update(_texts(tree))
        attributes.update(_attributes(tree))
    for template in (path for folder in PRODUCT for path in (root / folder).rglob("templates/*.*")):
        attributes.update(IN_TEMPLATE.findall(template.read_text(encoding="utf-8")))
    imported = _imported(trees)
    found = []
    for path, tree in trees.items():
        inside = Counter(_names(tree))
        for name, node in _top(tree):
            used = (
                (_module(path), name) in imported
                or inside[name] > Counter(_names(node))[name]
                or told[name] > Counter(_texts(node))[name]
            )
            if not used:
                found.append(f"{path.relative_to(root).as_posix()}: {name}")
            for method in _methods(node):
                last = method.name
                own = Counter(_attributes(method))[last] + Counter(_texts(method))[last]
                if attributes[last] + told[last] <= own:
                    found.append(f"{path.relative_to(root).as_posix()}: {name}.{last}")
    return [line for line in found if line.replace(": ", ".").rpartition(".")[2] not in KNOWN]


def _module(path: Path) -> str:
    """The last part of a file's module name."""
    return path.parent.name if path.stem == "__init__" else path.stem


def _top(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """What a file defines at its top, with the statement that does it."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n for target in targets for n in ast.walk(target)):
                if isinstance(name, ast.Name) and name.id != "__all__":
                    yield name.id, node


def _methods(node: ast.stmt) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """A class's methods but for those that Python itself calls."""
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, FUNCTIONS) and not part.name.startswith("__"):
            yield part


def _imported(trees: dict[Path, ast.Module]) -> set[tuple[str, str]]:
    """(module, name) of all that files take from other modules, by the modules' last parts."""
    taken: set[tuple[str, str]] = set()
    handed_on: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for path, tree in trees.items():
        modules: dict[str, str] = {}
        read = set(_names(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                package = path.parents[max(node.level, 1) - 1].name
                module = (node.module or package).rpartition(".")[2]
                for alias in node.names:
                    modules[alias.asname or alias.name] = alias.name
                    pair = (module, alias.name)
                    if path.stem == "__init__" and (alias.asname or alias.name) not in read:
                        handed_on.setdefault((path.parent.name, alias.name), set()).add(pair)
                    else:
                        taken.add(pair)
        taken |= {
            (modules[node.value.id], node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        }
    while more := {p for pair in taken for p in handed_on.get(pair, ())} - taken:
        taken |= more
    return taken


def _names(tree: ast.AST) -> Iterator[str]:
    """Names that are read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id


def _attributes(tree: ast.AST) -> Iterator[str]:
    """Attributes that are read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def _texts(tree: ast.AST) -> Iterator[str]:
    """Texts that are nothing but a name, those of `__all__` left out."""
    skipped = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and value.isidentifier() and id(node) not in skipped:
            yield value


def test_everything_is_used():
    assert unused(ROOT) == []


USED = {
    "core/__init__.py": "",
    "core/sums.py": """
LIMIT = 3
class Sum:
    def total(self): return LIMIT
def add(values): return Sum().total()
""",
    "trainer/__init__.py": "",
    "trainer/pace/__init__.py": "from .steps import step\n__all__ = ['step']",
    "trainer/pace/steps.py": "def step(): ...",
    "trainer/run.py": """
from ..core import sums
from .pace import step
def run(): return sums.add([step()]), getattr(sums, "later")
""",
    "__main__.py": "from .trainer.run import run\nrun()",
}


@pytest.mark.parametrize(
    ("file", "planted", "found"),
    [
        ("core/sums.py", "", None),
        ("core/sums.py", "def later(): ...", None),  # told as a text
        ("core/sums.py", "def spare(): ...", "spare"),
        ("core/sums.py", "def _spare(): ...", "_spare"),
        ("core/sums.py", "def spare(n): return spare(n - 1)", "spare"),
        ("core/sums.py", "SPARE: int = 4", "SPARE"),
        ("core/sums.py", "class Spare(Sum): ...", "Spare"),
        ("core/sums.py", "def spare(): 'spare'\n__all__ = ['spare']", "spare"),
        ("core/sums.py", "Sum2 = type('x', (Sum,), {'spare': 1})", "Sum2"),
        ("core/sums.py", "class Spare:\n    def rest(self): ...\nadd(Spare)", "Spare.rest"),
        ("trainer/run.py", "def add(values): ...", "add"),  # another one is used
        ("trainer/pace/steps.py", "def walk(): ...", "walk"),
        ("trainer/pace/__init__.py", "from .steps import step as _", None),
    ],
)
def test_a_definition_that_nothing_uses_is_found(tmp_path, file, planted, found):
    for name, text in USED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + (f"\n{planted}\n" if name == file else ""))
    assert unused(tmp_path) == ([f"{file}: {found}"] if found else [])


def test_handing_a_name_on_is_no_use(tmp_path):
    for name, text in USED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    steps = tmp_path / "trainer/pace/steps.py"
    steps.write_text(steps.read_text() + "\ndef walk(): ...\n")
    package = tmp_path / "trainer/pace/__init__.py"
    package.write_text(package.read_text() + "\nfrom .steps import walk\n")
    assert unused(tmp_path) == ["trainer/pace/steps.py: walk"]
    run = tmp_path / "trainer/run.py"
    run.write_text(run.read_text() + "\nfrom .pace import walk\nwalk()\n")
    assert unused(tmp_path) == []
