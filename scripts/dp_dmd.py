"""The one file that AUTOMATIC1111 and its forks execute, again on every UI reload: keep it thin."""

import importlib.util
import sys
from pathlib import Path

if "dpdmd_studio" not in sys.modules:
    entry = Path(__file__).parents[1] / "__init__.py"
    spec = importlib.util.spec_from_file_location("dpdmd_studio", entry)
    sys.modules["dpdmd_studio"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["dpdmd_studio"])

from dpdmd_studio.webui_extension import register

register()
