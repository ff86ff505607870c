"""The pages are built, served and used under each gradio that a host or the GUI has.

The old ones get small environments of their own below the user's cache folder (about half a minute
each, once), or where DPDMD_GRADIO_ENVIRONMENTS says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# What A1111 and Forge pin beside gradio, or what they get without a pin.
HOSTS = {
    "3.41.2": ("fastapi==0.94.0", "pydantic==1.10.27", "httpx==0.24.1", "huggingface-hub==0.36.2"),
    "4.40.0": ("fastapi==0.104.1", "pydantic==2.8.2", "httpx==0.24.1", "huggingface-hub==0.26.2"),
}
OLD_PYTHON = (3, 12)
"""The first Python on which some of these pins have no wheels."""


def environment(version: str) -> Path:
    """A Python with that gradio, made if it is not there yet."""
    chosen = os.environ.get("DPDMD_GRADIO_ENVIRONMENTS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpdmd-studio-tests"
    python = ".".join(map(str, sys.version_info[:2]))
    place = (Path(chosen) if chosen else cache) / f"gradio-{version}-python-{python}"
    ready = place / "ready"
    if not ready.exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        wanted = [f"gradio=={version}", *HOSTS[version], "numpy==1.26.2", "pillow==9.5.0"]
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
        done = subprocess.run(pip, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        ready.write_text("")
    return place / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("version", [*HOSTS, "current"])
def test_the_pages_are_built_served_and_used(version, home):
    if version != "current" and sys.version_info >= OLD_PYTHON:
        pytest.skip(f"gradio {version} and its pins are for Python 3.11 at most")
    python = Path(sys.executable) if version == "current" else environment(version)
    program = ROOT / "tests" / "gradio_versions_program.py"
    variables = os.environ | {"DPDMD_HOME": str(home), "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run(
        [str(python), str(program), str(ROOT)],
        capture_output=True, text=True, timeout=120, env=variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("FACTS "))[6:])
    if version == "current":
        assert int(facts["gradio"].split(".")[0]) >= 6
    else:
        assert facts["gradio"] == version
    assert facts["warnings"] == [] and facts["components"] > 250 and facts["loads"] >= 2
    assert "{long hair|short hair" in facts["tags"]
    assert facts["emoji"].count("\n") == 400 and "flower" in facts["emoji"]
    assert {"dpdmd-start", "dpdmd-checkpoint", "dpdmd-refresh"} <= set(facts["ids"])
