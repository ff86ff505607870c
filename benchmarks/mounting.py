"""Makes the checkout importable as `dpdmd_studio`, and tools/ too, for scripts run anywhere."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "mount.py"))
sys.path.append(str(ROOT / "tools"))
