"""Makes the checkout importable as `dpdmd_studio` for scripts that are run from anywhere."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "mount.py"))
