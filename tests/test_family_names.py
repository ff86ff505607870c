"""A family's name is written once, and no code goes by the class of a network.

Held over the source, with the names of the registry: a new family is covered.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import made_up_family as made_up
import pytest
from dpdmd_studio.app.config.presets import MEMORIES, PRESETS, SIZES
from dpdmd_studio.core.families import FAMILIES, FAMILY_LABELS, family
from dpdmd_studio.core.recipe.known_students import KNOWN_STUDENTS
from dpdmd_studio.trainer.families import HALVES, half_of

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("core", "app", "trainer", "cli", "comfy_nodes", "webui_extension", "scripts")
# tables by family (complete: below)
EXEMPT = ("core/recipe/known_students.py", "app/config/presets.py")
# a diffusers folder names its network's class, which is how its family is told
CLASSES_KNOWN_IN = ("core/families/*.py", "trainer/families/*.py")


def strings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string in the code, parts of f-strings too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def violations(path: str, source: str) -> list[str]:
    """One sentence for each name in the file that belongs elsewhere."""
    found = []
    names = set(FAMILY_LABELS)
    if fnmatch(path, "core/families/*.py"):
        names -= {Path(path).stem}
    if not any(fnmatch(path, pattern) for pattern in EXEMPT):
        found += [f"{path}:{line} names the family {text!r}"
                  for line, text in strings(source) if text in names]  # fmt: skip
    if not any(fnmatch(path, pattern) for pattern in CLASSES_KNOWN_IN):
        classes = {half.network.__name__ for half in HALVES.values()}
        found += [f"{path} names the network {name}" for name in classes if name in source]
    return found


def product_files() -> dict[str, str]:
    """Every file of the product -> its source."""
    paths = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in [*paths, *ROOT.glob("*.py")]
    }


def test_a_family_is_named_in_its_own_file_alone():
    found = [text for path, source in product_files().items() for text in violations(path, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("comfy_nodes/host/models.py", 'return "sd1"'),
        ("webui_extension/host/models.py", 'if family == "sd3": pass'),
        ("app/share/hosts.py", 'if facts.family == "sd3": pass'),
        ("trainer/text/encoders.py", 'SKIPS = {"sd1": 1}'),
        ("core/lora/keys.py", 'def f():\n    return "sdxl"'),
        ("core/families/base.py", 'FamilyName = Literal["sd1"]'),
        ("core/families/sd1.py", 'like = "sdxl"'),
        ("trainer/families/sd1.py", 'HALVES["sd1"] = HALF'),
        ("trainer/loading/parts.py", "from diffusers import UNet2DConditionModel"),
        (
            "trainer/attention.py",
            'if kind == "SD3Transformer2DModel": pass',
        ),
        ("__main__.py", 'kinds = ["sd1"]'),
    ],
)
def test_a_planted_violation_is_caught(path, line):
    assert violations(path, line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/families/sd3.py", 'name = "sd3"'),
        ("app/config/presets.py", 'PRESETS = {"sd1": {}}'),
        ("trainer/families/sd1.py", "from diffusers import UNet2DConditionModel"),
        ("app/estimate.py", 'text = "SDXL and sd1 are families"'),
    ],
)
def test_what_is_allowed_is_not_reported(path, line):
    assert not violations(path, line)


def test_a_new_family_is_covered():
    line = f"if family == {made_up.NAME!r}: pass"
    assert not violations("app/estimate.py", line)
    with made_up.known():
        assert violations("app/estimate.py", line)
        assert violations("app/estimate.py", f"x = {made_up.MadeUpNetwork.__name__}")


def test_every_family_has_its_two_halves():
    assert HALVES.keys() == FAMILY_LABELS.keys() == {item.name for item in FAMILIES}
    for item in FAMILIES:
        assert family(item.name) is half_of(item).facts is item
        for room in ("core", "trainer"):
            assert (ROOT / room / "families" / f"{item.name}.py").is_file()


def test_the_tables_by_family_are_complete():
    assert PRESETS.keys() == FAMILY_LABELS.keys()
    every = {title for item in FAMILIES for title in item.sizes}
    assert SIZES.keys() == every
    assert all(set(presets) <= set(MEMORIES) for presets in (PRESETS | SIZES).values())
    every = {name for student in KNOWN_STUDENTS.values() for name in student.families}
    assert every == FAMILY_LABELS.keys()


@pytest.mark.parametrize("item", FAMILIES, ids=lambda item: item.name)
def test_the_facts_agree_with_each_other(item):
    assert set(item.text.prefixes) == set(item.text.encoders)
    assert set(item.cost.per_rank) == set(item.cost.per_pixel) == {"attention", "full"}
    assert item.lora.base_model_version.startswith(item.lora.declared)
    # a VP family may have flows among its fine-tunes; the usual prediction is of its schedule
    assert (item.sampling.schedule == "flow") == (item.sampling.predictions[0] == "flow")
    assert item.sharing.labels[-1] == "Other" and item.sharing.clip_types
