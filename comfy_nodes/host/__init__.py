"""Everything that touches ComfyUI. Nothing is imported from it before it is needed.

This folder shows all we ask of the host. Node classes can be defined, and tested, where there is no
ComfyUI. What a version of it has is found out by looking (hasattr, signatures), from 0.3.60 on.
"""

from __future__ import annotations

import sys


def is_here() -> bool:
    """Whether this process is a ComfyUI."""
    return "comfy.samplers" in sys.modules
