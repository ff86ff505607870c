"""Everything that touches the web UI: A1111, Forge and their relatives, told apart by looking.

This folder shows all we ask of the hosts. Nothing is imported from one before it is needed, so the
rest can be tested without one.
"""

from __future__ import annotations

import sys


def is_here() -> bool:
    """Whether this process is a web UI."""
    return "modules.sd_samplers" in sys.modules
