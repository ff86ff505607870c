"""Run this file, and the checkout is importable as `dpdmd_studio`, whatever its folder is called.

    runpy.run_path(os.path.join(CHECKOUT, "mount.py"))

The package cannot do that itself: until it has its name, nothing of it can be imported. So whoever
starts from a file of the checkout runs this one first. Run again, or where the package is imported
already, it changes nothing. ComfyUI gives the package a name of its own and needs none of this.
"""

import importlib.util
import os
import sys

if "dpdmd_studio" not in sys.modules:
    entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__init__.py")
    spec = importlib.util.spec_from_file_location("dpdmd_studio", entry)
    sys.modules["dpdmd_studio"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["dpdmd_studio"])
