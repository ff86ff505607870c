"""Pages, and parts of pages, are made from templates that lie beside the code (jinja2).

jinja2 is in every environment, since torch needs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@cache
def html_templates(folder: Path) -> Environment:
    """The HTML templates of a folder: every value is escaped, a missing one is an error.

    They are found by path: hosts load this package under names of their own, by which jinja2's
    PackageLoader finds nothing.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
