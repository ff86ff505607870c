"""Makes the checkout importable as `dpdmd_studio` for scripts that are run from anywhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def mount() -> None:
    """Import the checkout once under its name."""
    if "dpdmd_studio" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("dpdmd_studio", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dpdmd_studio"] = module
    spec.loader.exec_module(module)


mount()
