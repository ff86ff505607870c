"""The one file that AUTOMATIC1111 and its forks execute, again on every UI reload: keep it thin."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "mount.py"))

from dpdmd_studio.webui_extension import register  # noqa: E402

register()
