"""HTML is made by templates alone, which escape what they show, wherever the package is loaded."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from dpdmd_studio.app.report.templating import html_templates
from dpdmd_studio.app.share.markdown import markdown_templates
from jinja2 import UndefinedError

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("core", "app", "trainer", "cli", "comfy_nodes", "webui_extension")
TEMPLATES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("templates/*.*"))
HTML = re.compile(
    r"</?(a|b|i|p|br|h[1-6]|hr|dl|dt|dd|ul|ol|li|div|img|pre|svg|code|html|span|style|table|t[rhd]"
    r"|button|figure|iframe|script|small|strong|section)(\s[^<>]*)?(>|$)"
)


def markup_in(source: str) -> list[str]:
    """String literals of a module, docstrings excepted, that hold HTML."""
    tree = ast.parse(source)
    documentation = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in documentation
        and HTML.search(node.value)
    ]


def test_no_html_is_built_of_strings():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {path.name: markup_in(path.read_text(encoding="utf-8")) for path in files}
    assert {name: texts for name, texts in found.items() if texts} == {}


@pytest.mark.parametrize("line", ["x = '<p>a</p>'", "x = f'<div class=\"{y}\">'", "x = '</li>'"])
def test_a_planted_string_is_caught(line):
    assert markup_in(line)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_can_be_read(path):
    markdown = path.suffix == ".md"
    environment = markdown_templates() if markdown else html_templates(path.parent)
    environment.get_template(path.name)


def test_values_are_escaped_and_must_be_there(tmp_path):
    (tmp_path / "a.html").write_text("<p>{{ text }}</p>", encoding="utf-8")
    template = html_templates(tmp_path).get_template("a.html")
    assert template.render(text="<b>'\"&") == "<p>&lt;b&gt;&#39;&#34;&amp;</p>"
    with pytest.raises(UndefinedError, match="text"):
        template.render()


def test_templates_are_found_under_any_package_name():
    name = "odd name-1"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
        html = importlib.import_module(f"{name}.app.gui.widgets.html")
        assert "<h2>a &amp; b</h2>" in html.heading("a & b")
    finally:
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]
